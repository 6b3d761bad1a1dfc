"""Neurons by Optimal Brain Surgeon: the least missed goes first, and W_out makes up for it."""

from torch import nn

from ffmerge.importance import score_surgeon
from ffmerge.methods import Evidence
from ffmerge.moments import collect_moments
from ffmerge.patches import Patch, Plan
from ffmerge.pruning import list_neuron_plans, prune

LOOK = {"label": "neurons: OBS", "color": "#882255", "marker": "D"}
FAMILY = "removes"
REMOVES = "FF sublayers"
NEEDS = ("calibration",)
REFERENCE = "Optimal Brain Surgeon: Hassibi and Stork, 1993; ZipLM: Kurtic et al., 2023"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Equally many neurons in every FF sublayer, as many as a merge would store."""
    return list_neuron_plans(model, count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Greedy by ‖w_j‖² / (G⁻¹)_jj; W_out's updates, summed, are least squares on the kept."""
    moments = evidence.once("moments", lambda: collect_moments(model, evidence.calibration()))
    return prune(
        model, plan, evidence.once("order", lambda: score_surgeon(model, moments)), moments
    )
