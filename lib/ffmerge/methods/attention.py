"""Attention: align the heads of a window's self-attention, then share values and outputs."""

from torch import nn

from ffmerge.activations import collect_heads
from ffmerge.attention.merging import align_attention, merge_attention
from ffmerge.merging import list_window_plans
from ffmerge.methods import Evidence
from ffmerge.patches import Patch, Plan
from ffmerge.sublayers import find_depths

LOOK = {"label": "attention", "color": "#DDCC77", "marker": "o"}
FAMILY = "shares"
REMOVES = "attention sublayers"
NEEDS = ("calibration",)
REFERENCE = "the paper's reviewer 2: does merging work for attention too?"


def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
    """Every window of adjacent self-attention sublayers, the same in all stacks."""
    windows = list_window_plans(find_depths(model), count)
    return [Plan(attention=plan.groups) for plan in windows]


def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
    """Heads matched by the correlation of their outputs; W_v and W_o averaged as FFs are."""
    outputs = evidence.once("heads", lambda: collect_heads(model, evidence.calibration()))
    orders = align_attention(model, plan.attention, outputs)
    return Patch(plan, merge_attention(model, plan, orders))
