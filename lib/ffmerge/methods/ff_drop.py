"""FF drop: remove whole FF sublayers and keep the attention of their layers."""

import torch
from torch import nn

from ffmerge.groups import list_windows
from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan, check_plan
from ffmerge.sublayers import find_stacks
from ffmerge.weights import Weights, select

LOOK = {"label": "FF drop", "color": "#117733", "marker": "^"}
FAMILY = "removes"
REMOVES = "FF sublayers"
NEEDS = ()
REFERENCE = "what merging must beat: the FF sublayers of the window are left out"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Every window of adjacent sublayers, the same in all stacks; each leaves one neuron."""
    stacks = find_stacks(model)
    windows = list_windows(min(map(len, stacks.values())), count // len(stacks))

    def widths(stack, window):
        return tuple(1 if i in window else ff.d_ff for i, ff in enumerate(stack.sublayers))

    return [Plan(neurons={n: widths(s, window) for n, s in stacks.items()}) for window in windows]


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """The neuron that is left (libraries take no projection without any) says nothing, for ever."""
    tensors = {}
    for name, stack in check_plan(model, plan).items():
        for i, width in enumerate(plan.neurons[name]):
            if width == 1:
                left = select(stack.sublayers[i].read(), torch.tensor([0]))
                silent = {
                    k: None if w is None else torch.zeros_like(w) for k, w in vars(left).items()
                }
                tensors |= stack.arrange(i, Weights(**silent))
    return Patch(plan, tensors)
