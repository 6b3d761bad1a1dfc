"""Pool: one second-order choice among private and merged neurons of every two neighbours.

It hardly ever keeps a merged one, and that proves nothing about sharing: all private neurons give
both outputs exactly, so the merged ones are missed least and go first (a test shows it on every
family).
What is left is Optimal Brain Surgeon with one budget a pair. `ffmerge.ablations.forward` searches
from the other end; notebook 8 compares the two.
"""

from torch import nn

from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan
from ffmerge.pooling import fit_pools, pool_pairs
from ffmerge.pruning import list_neuron_plans

LOOK = {"label": "pool", "color": "#000000", "marker": "*"}
FAMILY = "both"
REMOVES = "FF sublayers"
NEEDS = ("permutations", "calibration")
REFERENCE = "Optimal Brain Surgeon over the neurons of two sublayers and their merged ones; ours"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """As much as an even pruning keeps; what a pair spends it on, `make` finds; one candidate."""
    return list_neuron_plans(model, count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """W_out by least squares on what is kept; a merged neuron is written into both sublayers."""
    pools = evidence.once(
        "pools", lambda: pool_pairs(model, evidence.permutations, evidence.calibration())
    )
    return fit_pools(model, plan, pools)
