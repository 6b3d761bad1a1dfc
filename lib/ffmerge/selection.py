"""Which candidate is best: score all before any tuning, choose, draw at random (Section 3.4)."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn
from tqdm import tqdm

from ffmerge.patches import Plan


def score_plans(
    plans: Sequence[Plan],
    compress: Callable[[Plan], nn.Module],
    evaluate: Callable[[nn.Module], float],
    label: str = "candidates",
) -> list[float]:
    """Score the compressed model of every candidate before any tuning (Section 3.4, Appendix B).

    Args:
        plans: the candidates.
        compress: plan to compressed model.
        evaluate: model to score on validation data.
        label: what the progress bar says.

    Returns:
        One score for each, in the order given.
    """
    return [evaluate(compress(plan)) for plan in tqdm(plans, desc=label, unit="candidate")]


def choose(scores: Sequence[float], higher_is_better: bool) -> int:
    """The place of the best score; of equals, the earliest.

    Args:
        scores: one for each candidate.
        higher_is_better: which way the metric points.
    """
    best = max(scores) if higher_is_better else min(scores)
    return list(scores).index(best)


def shuffle_others(n: int, best: int, seed: int) -> list[int]:
    """The places of all candidates but the best, in random order (Section 5.2).

    Args:
        n: number of candidates.
        best: the place of the best one.
        seed: of the order.
    """
    others = [i for i in range(n) if i != best]
    order = np.random.default_rng(seed).permutation(len(others))
    return [others[i] for i in order]
