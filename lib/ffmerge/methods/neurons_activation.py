"""Neurons by activation × output: keep those that add most to what the sublayer puts out."""

from torch import nn

from ffmerge.importance import score_activations
from ffmerge.methods import Evidence
from ffmerge.moments import collect_moments
from ffmerge.patches import Patch, Plan
from ffmerge.pruning import list_neuron_plans, prune

LOOK = {"label": "neurons: activation × output", "color": "#CC79A7", "marker": "<"}
FAMILY = "removes"
REMOVES = "FF sublayers"
NEEDS = ("calibration",)
REFERENCE = "activation times norm, as Wanda's score: Sun et al., 2024"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Equally many neurons in every FF sublayer, as many as a merge would store."""
    return list_neuron_plans(model, count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Score σ_j ‖w_j‖: the spread of neuron j's activation, the norm of its column of W_out."""
    moments = evidence.once("moments", lambda: collect_moments(model, evidence.calibration()))
    return prune(model, plan, score_activations(model, moments))
