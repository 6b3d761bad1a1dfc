"""Groups: a partition into runs of neighbours in the place of one window, then permute."""

from torch import nn

from ffmerge.merging import merge_groups
from ffmerge.methods import Evidence
from ffmerge.pairs import select_permutations
from ffmerge.partitions import list_group_plans, partition_neighbours
from ffmerge.patches import Patch, Plan

LOOK = {"label": "groups", "color": "#56B4E9", "marker": "h"}
FAMILY = "shares"
REMOVES = "FF sublayers"
NEEDS = ("permutations", "calibration")
REFERENCE = "the paper's reviewers 1 and 4; dynamic programming over pairs' output errors"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """The cheapest groups of adjacent sublayers in each stack; one candidate."""
    return list_group_plans(model, count, evidence, partition_neighbours)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Permute every sublayer to its group's anchor, then average (Eqs. 3-6)."""
    permutations = select_permutations(evidence.permutations, plan.groups)
    return merge_groups(model, plan, permutations)
