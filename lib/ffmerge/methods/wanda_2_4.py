"""Wanda, 2:4: two of every four neighbouring weights become zeros, as GPUs want it."""

from torch import nn

from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan, check_plan
from ffmerge.sparsity import list_sparse_plans, prune_weights

LOOK = {"label": "Wanda, 2:4", "color": "#999933", "marker": "X"}
FAMILY = "stores fewer bits"
REMOVES = "% of weights"
NEEDS = ("calibration",)
REFERENCE = "Wanda: Sun et al., 2024"
TOKENS = 10_000  # of calibration


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """One candidate: nothing of the structure goes, half of the weights do, and no other share."""
    return list_sparse_plans(count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Two of every four neighbours in a row are kept, by |W_ij| ‖x_j‖."""
    check_plan(model, plan)
    return Patch(plan, prune_weights(model, evidence.calibration(), TOKENS, keep=2, of=4))
