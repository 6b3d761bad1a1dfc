"""Drop by angular distance: remove the run of layers whose end looks most like its start."""

import torch
from torch import nn

from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan, check_plan
from ffmerge.streams import measure_turns
from ffmerge.sublayers import find_stacks

LOOK = {"label": "drop: angle", "color": "#009E73", "marker": "<"}
FAMILY = "removes"
REMOVES = "layers"
NEEDS = ("calibration",)
REFERENCE = "Gromov et al., 2024: The Unreasonable Ineffectiveness of the Deeper Layers"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """In each stack the window of the least angle, arccos of the cosine; one candidate."""
    stacks = find_stacks(model)
    n = count // len(stacks)
    angles = measure_turns(model, evidence.calibration(), torch.arccos, n)
    starts = {name: int(angles[name].argmin()) for name in stacks}
    return [Plan(dropped={name: tuple(range(i, i + n)) for name, i in starts.items()})]


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """No tensor changes: what is left stays as it is."""
    check_plan(model, plan)
    return Patch(plan)
