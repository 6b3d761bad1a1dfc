"""Drop by Block Influence: remove the layers that turn the residual stream the least."""

from torch import nn

from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan, check_plan
from ffmerge.streams import measure_turns
from ffmerge.sublayers import find_stacks

LOOK = {"label": "drop: influence", "color": "#009E73", "marker": "v"}
FAMILY = "removes"
REMOVES = "layers"
NEEDS = ("calibration",)
REFERENCE = "ShortGPT: Men et al., 2024"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """The layers of the lowest influence, 1 - E[cos(x_in, x_out)], in each stack; one candidate."""
    stacks = find_stacks(model)
    influence = measure_turns(model, evidence.calibration(), lambda cosine: 1 - cosine)
    lowest = {name: influence[name].argsort()[: count // len(stacks)] for name in stacks}
    return [Plan(dropped={name: tuple(sorted(low.tolist())) for name, low in lowest.items()})]


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """No tensor changes: what is left stays as it is."""
    check_plan(model, plan)
    return Patch(plan)
