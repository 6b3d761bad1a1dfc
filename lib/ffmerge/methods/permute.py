"""Permute: align a group's FF sublayers to its anchor, then average them (Sections 3.2 and 3.3).

The paper's method, exactly: neurons are matched by the correlation of their features.
"""

from torch import nn

from ffmerge.merging import list_window_plans, merge_groups
from ffmerge.methods import Evidence
from ffmerge.pairs import select_permutations
from ffmerge.patches import Patch, Plan
from ffmerge.sublayers import find_depths

LOOK = {"label": "permute", "color": "#0072B2", "marker": "o"}
FAMILY = "shares"
REMOVES = "FF sublayers"
NEEDS = ("permutations",)
REFERENCE = "the paper's method, Section 3.3"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Every window of adjacent sublayers, the same in all stacks, aligned to its first."""
    return list_window_plans(find_depths(model), count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Permute every sublayer to its group's anchor, then average (Eqs. 3-6)."""
    permutations = select_permutations(evidence.permutations, plan.groups)
    return merge_groups(model, plan, permutations)
