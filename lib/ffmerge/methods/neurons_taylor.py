"""Neurons by Taylor expansion: keep those that the loss would miss most."""

from torch import nn

from ffmerge.importance import score_gradients
from ffmerge.methods import Evidence
from ffmerge.moments import find_tokens
from ffmerge.patches import Patch, Plan
from ffmerge.pruning import list_neuron_plans, prune

LOOK = {"label": "neurons: Taylor", "color": "#CC79A7", "marker": ">"}
FAMILY = "removes"
REMOVES = "FF sublayers"
NEEDS = ("calibration",)
REFERENCE = "first-order Taylor expansion: Molchanov et al., 2019"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Equally many neurons in every FF sublayer, as many as a merge would store."""
    return list_neuron_plans(model, count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Score E[(Σ h_j ∂L/∂h_j)²], summed over the positions of an example."""
    n = find_tokens(model)
    scores = evidence.once("scores", lambda: score_gradients(model, evidence.calibration(), n))
    return prune(model, plan, scores)
