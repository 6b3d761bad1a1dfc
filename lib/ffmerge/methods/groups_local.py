"""Groups, local: as `groups_refit`, then each shared FF is trained on the base's FF outputs."""

from torch import nn

from ffmerge.methods import Evidence
from ffmerge.pairs import select_permutations
from ffmerge.partitions import list_group_plans, partition_neighbours
from ffmerge.patches import Patch, Plan
from ffmerge.refitting import refit_groups
from ffmerge.regression import regress_groups

LOOK = {"label": "groups, local", "color": "#0072B2", "marker": "*"}
FAMILY = "shares"
REMOVES = "FF sublayers"
NEEDS = ("permutations", "calibration")
REFERENCE = "layer-wise regression, as PLeaS (2024) does between models; here inside one"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """The cheapest groups of adjacent sublayers in each stack; one candidate."""
    return list_group_plans(model, count, evidence, partition_neighbours)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Least squares, then Adam on ‖FF(x_i) - FF_i(x_i)‖² over the group's layers; no labels."""
    permutations = select_permutations(evidence.permutations, plan.groups)
    start = refit_groups(model, plan, permutations, evidence.calibration)
    return regress_groups(model, start, evidence.calibration)
