"""Attention and FF: one window whose FF sublayers and whose self-attention are both merged."""

from torch import nn

from ffmerge.merging import list_window_plans
from ffmerge.methods import Evidence, attention, permute
from ffmerge.patches import Patch, Plan
from ffmerge.sublayers import find_depths

LOOK = {"label": "attention and FF", "color": "#DDCC77", "marker": "s"}
FAMILY = "shares"
REMOVES = "FF and attention sublayers"
NEEDS = ("permutations", "calibration")
REFERENCE = "the paper's method and its reviewer 2's question, together"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Every window of adjacent layers, the same in all stacks, aligned to its first."""
    windows = list_window_plans(find_depths(model), count)
    return [Plan(plan.groups, attention=plan.groups) for plan in windows]


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Permute for the FF sublayers, and for self-attention what `attention` does."""
    both = permute.make(model, plan, evidence), attention.make(model, plan, evidence)
    return Patch(plan, {**both[0].tensors, **both[1].tensors})
