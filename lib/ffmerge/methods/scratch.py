"""Scratch: the tied architecture with nothing of the base in it, drawn anew as it initialises."""

import copy

import torch
from torch import nn

from ffmerge.merging import list_window_plans
from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan, apply_plan, check_plan
from ffmerge.sublayers import find_depths

LOOK = {"label": "from scratch", "color": "#999999", "marker": "s"}
FAMILY = "shares"
REMOVES = "FF sublayers"
NEEDS = ()
REFERENCE = "the paper's reviewer 4: is sharing from scratch better?"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """The window in the middle, of two the earlier: before training all predict by chance."""
    windows = list_window_plans(find_depths(model), count)
    return [windows[(len(windows) - 1) // 2]]


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Every parameter of the tied model, as transformers draws those of a new one; always the same.

    Raises:
        ValueError: a model without a configuration, as `check_plan` says.
    """
    check_plan(model, plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = type(model)(copy.deepcopy(model.config))
    tied = apply_plan(drawn.to(next(model.parameters()).dtype), plan)
    return Patch(plan, {name: p.detach() for name, p in tied.named_parameters()})
