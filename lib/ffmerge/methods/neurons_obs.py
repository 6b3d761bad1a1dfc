"""Neurons by Optimal Brain Surgeon's order, the weights of those that stay as they were."""

from torch import nn

from ffmerge.importance import score_surgeon
from ffmerge.methods import Evidence
from ffmerge.moments import collect_moments
from ffmerge.patches import Patch, Plan
from ffmerge.pruning import list_neuron_plans, prune

LOOK = {"label": "neurons: OBS's order", "color": "#CC79A7", "marker": "D"}
FAMILY = "removes"
REMOVES = "FF sublayers"
NEEDS = ("calibration",)
REFERENCE = "Optimal Brain Surgeon: Hassibi and Stork, 1993; ZipLM: Kurtic et al., 2023"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Equally many neurons in every FF sublayer, as many as a merge would store."""
    return list_neuron_plans(model, count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Only OBS's choice of neurons; its update of W_out is left out, to show what it adds."""
    moments = evidence.once("moments", lambda: collect_moments(model, evidence.calibration()))
    return prune(model, plan, evidence.once("order", lambda: score_surgeon(model, moments)))
