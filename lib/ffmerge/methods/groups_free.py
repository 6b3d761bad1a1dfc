"""Groups, free: sublayers that share need not be neighbours; then permute."""

from torch import nn

from ffmerge.merging import merge_groups
from ffmerge.methods import Evidence
from ffmerge.pairs import select_permutations
from ffmerge.partitions import list_group_plans, partition_freely
from ffmerge.patches import Patch, Plan

LOOK = {"label": "groups, free", "color": "#56B4E9", "marker": "H"}
FAMILY = "shares"
REMOVES = "FF sublayers"
NEEDS = ("permutations", "calibration")
REFERENCE = "the paper's reviewer 4; all sets of anchors are tried on pairs' output errors"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """The cheapest groups of any sublayers in each stack; one candidate."""
    return list_group_plans(model, count, evidence, partition_freely)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Permute every sublayer to its group's anchor, then average (Eqs. 3-6)."""
    permutations = select_permutations(evidence.permutations, plan.groups)
    return merge_groups(model, plan, permutations)
