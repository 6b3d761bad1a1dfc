"""Vanilla: average a group of FF sublayers neuron by neuron, as they stand (Section 5.1)."""

from torch import nn

from ffmerge.merging import list_window_plans, merge_groups
from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan
from ffmerge.sublayers import find_depths

LOOK = {"label": "vanilla", "color": "#D55E00", "marker": "s"}
FAMILY = "shares"
REMOVES = "FF sublayers"
NEEDS = ()
REFERENCE = "the paper's baseline, Section 5.1"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Every window of adjacent sublayers, the same in all stacks."""
    return list_window_plans(find_depths(model), count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Average each group without permuting (Eq. 6 with P = I)."""
    return merge_groups(model, plan, {})
