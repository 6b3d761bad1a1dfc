"""Neurons by magnitude: keep those with the largest weights, in every FF sublayer."""

from torch import nn

from ffmerge.importance import score_magnitudes
from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan
from ffmerge.pruning import list_neuron_plans, prune

LOOK = {"label": "neurons: magnitude", "color": "#CC79A7", "marker": "v"}
FAMILY = "removes"
REMOVES = "FF sublayers"
NEEDS = ()
REFERENCE = "magnitude pruning: Li et al., 2017"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Equally many neurons in every FF sublayer, as many as a merge would store."""
    return list_neuron_plans(model, count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """The weights of the neurons that stay are not changed."""
    return prune(model, plan, score_magnitudes(model))
