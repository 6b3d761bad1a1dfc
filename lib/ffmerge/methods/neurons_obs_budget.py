"""Neurons by Optimal Brain Surgeon, with one budget for all sublayers of a stack."""

from torch import nn

from ffmerge.importance import price_neurons
from ffmerge.methods import Evidence
from ffmerge.moments import collect_moments
from ffmerge.patches import Patch, Plan
from ffmerge.pruning import list_neuron_plans, prune, spread_neurons

LOOK = {"label": "neurons: OBS, one budget", "color": "#AA4499", "marker": "p"}
FAMILY = "removes"
REMOVES = "FF sublayers"
NEEDS = ("calibration",)
REFERENCE = "Optimal Brain Surgeon: Hassibi and Stork, 1993, with one order for all sublayers; ours"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """As many neurons as an even pruning keeps; where, `make` finds; one candidate."""
    return list_neuron_plans(model, count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """What adds the least to the squared error of its sublayer goes first, wherever it is."""
    moments = evidence.once("moments", lambda: collect_moments(model, evidence.calibration()))
    prices = evidence.once("prices", lambda: price_neurons(model, moments))
    return prune(model, spread_neurons(plan, prices), prices, moments)
