"""Drop: remove whole layers, attention and all (Section 4.4)."""

from torch import nn

from ffmerge.groups import list_windows
from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan, check_plan
from ffmerge.sublayers import find_depths

LOOK = {"label": "drop", "color": "#009E73", "marker": "^"}
FAMILY = "removes"
REMOVES = "layers"
NEEDS = ()
REFERENCE = "the paper's baseline, Section 4.4"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Every window of adjacent layers, the same in all stacks; a single layer is a window too."""
    depths = find_depths(model)
    windows = list_windows(min(depths.values()), count // len(depths))
    return [Plan(dropped=dict.fromkeys(depths, layers)) for layers in windows]


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """No tensor changes: what is left stays as it is."""
    check_plan(model, plan)
    return Patch(plan)
