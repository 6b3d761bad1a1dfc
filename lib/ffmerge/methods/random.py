"""Random: the sublayers of a group share one that is initialised at random (reviewer 1)."""

from dataclasses import fields

import torch
from torch import Tensor, nn

from ffmerge.merging import list_window_plans
from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan, check_plan
from ffmerge.sublayers import find_depths
from ffmerge.weights import Weights

LOOK = {"label": "random", "color": "#999999", "marker": "X"}
FAMILY = "shares"
REMOVES = "FF sublayers"
NEEDS = ()
REFERENCE = "the paper's reviewer 1: is averaging better than starting anew?"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Every window of adjacent sublayers, the same in all stacks."""
    return list_window_plans(find_depths(model), count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Normal numbers with the mean and spread of the anchor's tensors; the same ones each time."""
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor | None) -> Tensor | None:
        if like is None:
            return None
        noise = torch.randn(like.shape, generator=generator).to(like)
        return like.mean() + like.std() * noise

    tensors = {}
    for name, stack in check_plan(model, plan).items():
        for group in plan.groups.get(name, ()):
            weights = stack.sublayers[group.anchor].read()
            drawn = Weights(**{f.name: draw(getattr(weights, f.name)) for f in fields(Weights)})
            tensors |= stack.arrange(group.layers[0], drawn)
    return Patch(plan, tensors)
