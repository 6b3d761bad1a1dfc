"""Neurons by magnitude, then W_out by least squares on what all neurons gave."""

from torch import nn

from ffmerge.importance import score_magnitudes
from ffmerge.methods import Evidence
from ffmerge.moments import collect_moments
from ffmerge.patches import Patch, Plan
from ffmerge.pruning import list_neuron_plans, prune

LOOK = {"label": "neurons: magnitude, refit", "color": "#882255", "marker": "v"}
FAMILY = "removes"
REMOVES = "FF sublayers"
NEEDS = ("calibration",)
REFERENCE = "magnitude pruning: Li et al., 2017; least squares: GRAIL, CORP (2025)"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Equally many neurons in every FF sublayer, as many as a merge would store."""
    return list_neuron_plans(model, count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """W_out' = W_out C[:, kept] (C[kept, kept] + λI)⁻¹, C the covariance of the activations."""
    moments = evidence.once("moments", lambda: collect_moments(model, evidence.calibration()))
    return prune(model, plan, score_magnitudes(model), moments)
