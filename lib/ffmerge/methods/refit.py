"""Refit: permute and average a window, then fit the shared FF by least squares to each layer's."""

from torch import nn

from ffmerge.merging import list_window_plans
from ffmerge.methods import Evidence
from ffmerge.pairs import select_permutations
from ffmerge.patches import Patch, Plan
from ffmerge.refitting import read_inputs, refit_groups
from ffmerge.sublayers import find_depths

LOOK = {"label": "refit", "color": "#332288", "marker": "o"}
FAMILY = "shares"
REMOVES = "FF sublayers"
NEEDS = ("permutations", "calibration")
REFERENCE = "RegMean: Jin et al., 2023, inside one model; for W_out CORP and GRAIL (2025)"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Every window of adjacent sublayers, the same in all stacks, aligned to its first."""
    return list_window_plans(find_depths(model), count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """W = (Σ P_i W_i G_i) (Σ G_i + λI)⁻¹ for W_in, W_gate, then W_out with b_out, shared too."""
    permutations = select_permutations(evidence.permutations, plan.groups)
    read = evidence.once("read", lambda: read_inputs(model, evidence.calibration()))
    return refit_groups(model, plan, permutations, evidence.calibration, read=read)
