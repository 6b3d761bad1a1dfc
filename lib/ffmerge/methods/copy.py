"""Copy: every sublayer of a group becomes the anchor's, which is not averaged with any."""

from torch import nn

from ffmerge.merging import list_window_plans
from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan, check_plan
from ffmerge.sublayers import find_depths

LOOK = {"label": "copy", "color": "#E69F00", "marker": "P"}
FAMILY = "shares"
REMOVES = "FF sublayers"
NEEDS = ()
REFERENCE = "cross-layer sharing without a merge: what reviewers asked averaging to beat"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Every window of adjacent sublayers, the same in all stacks; its first one is kept."""
    return list_window_plans(find_depths(model), count)


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """The anchor's weights, whatever the others were."""
    tensors = {}
    for name, stack in check_plan(model, plan).items():
        for group in plan.groups.get(name, ()):
            if group.anchor != group.layers[0]:  # whose weights the tied sublayer has already
                weights = stack.sublayers[group.anchor].read()
                tensors |= stack.arrange(group.layers[0], weights)
    return Patch(plan, tensors)
