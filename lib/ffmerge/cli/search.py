"""From a budget to the best candidate of a method: evidence gathered leanly, candidates scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from ffmerge.activations import Batch
from ffmerge.memory import collect_half
from ffmerge.methods import Evidence, find_method
from ffmerge.pairs import LazyPairs
from ffmerge.patches import Plan, apply_patch
from ffmerge.selection import choose, score_plans
from ffmerge.sublayers import find_depths


@dataclass(frozen=True)
class Found:
    """The best candidate.

    Attributes:
        model: compressed.
        plan: what was done.
        scores: each candidate's plan and score; none where there was one candidate only.
    """

    model: nn.Module
    plan: Plan
    scores: tuple[tuple[str, float], ...]


def gather_evidence(
    model: nn.Module, method: str, batches: Sequence[Batch], tokens: int
) -> Evidence:
    """What a method needs to know of a model.

    Args:
        model: the base.
        method: its name.
        batches: calibration data.
        tokens: of features, if the method aligns.
    """
    pairs = None
    if "permutations" in find_method(method).NEEDS:
        pairs = LazyPairs(collect_half(model, batches, tokens))
    return Evidence(pairs, lambda: batches)


def find_best(
    model: nn.Module,
    method: str,
    count: int,
    evidence: Evidence,
    score: Callable[[nn.Module], float],
) -> Found:
    """Make the best of a method's candidates.

    Args:
        model: the base; left as it is.
        method: its name.
        count: how much goes, of what the method counts.
        evidence: as `gather_evidence` gives.
        score: model to score, the lower the better; not called for a single candidate.
    """
    found = find_method(method)
    plans = found.list_plans(model, count, evidence)

    def make(plan: Plan) -> nn.Module:
        return apply_patch(model, found.make(model, plan, evidence))

    scores = score_plans(plans, make, score, method) if len(plans) > 1 else []
    best = plans[choose(scores, higher_is_better=False)] if scores else plans[0]
    patch = found.make(model, best, evidence)
    return Found(
        apply_patch(model, patch), patch.plan, tuple(zip(map(str, plans), scores, strict=False))
    )


def count_removed(model: nn.Module, method: str, share: Fraction) -> int:
    """How much of what a method counts is a share of a model.

    Args:
        model: the base.
        method: its name.
        share: above 0 and below 1.

    Raises:
        ValueError: that is not a whole number in every stack.
    """
    unit, depths = find_method(method).REMOVES, find_depths(model)
    is_percent = unit == "% of weights"
    whole, each = (100, 1) if is_percent else (sum(depths.values()), len(depths))
    count, most = share * whole, 99 if is_percent else (min(depths.values()) - 1) * each
    if most == 0:
        raise ValueError(f"a stack of this model has one layer ({depths}); valid are two or more")
    if count.denominator != 1 or count % each or not each <= count <= most:
        below = min(max(count // each * each, each), most)
        near = [f"{n}/{whole}" for n in (below, below + each) if n <= most]
        raise ValueError(
            f"--remove {share} of {whole} {unit} is {float(count):.4g}; valid is a whole number "
            f"from {each} to {most}"
            f"{f', a multiple of {each}' if each > 1 else ''}, such as {' or '.join(near)}"
        )
    return int(count)
