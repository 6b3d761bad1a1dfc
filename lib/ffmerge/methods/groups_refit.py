"""Groups, refit: a partition into runs of neighbours, each refit by least squares."""

from torch import nn

from ffmerge.methods import Evidence
from ffmerge.pairs import select_permutations
from ffmerge.partitions import list_group_plans, partition_neighbours
from ffmerge.patches import Patch, Plan
from ffmerge.refitting import read_inputs, refit_groups

LOOK = {"label": "groups, refit", "color": "#332288", "marker": "h"}
FAMILY = "shares"
REMOVES = "FF sublayers"
NEEDS = ("permutations", "calibration")
REFERENCE = "the groups of `groups`, the least squares of `refit`"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """The cheapest groups of adjacent sublayers in each stack; one candidate."""
    return list_group_plans(model, count, evidence, partition_neighbours)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """W = (Σ P_i W_i G_i) (Σ G_i + λI)⁻¹ for W_in and W_gate, then for W_out."""
    permutations = select_permutations(evidence.permutations, plan.groups)
    read = evidence.once("read", lambda: read_inputs(model, evidence.calibration()))
    return refit_groups(model, plan, permutations, evidence.calibration, read=read)
