"""Differences over a few seeds, their uncertainty, and the verdict that they allow."""

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from scipy import stats

Verdict = Literal["holds", "does not hold", "undecided"]
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number from a few seeds.

    Attributes:
        value: its mean.
        margin: half the width of its interval of 95 %; infinite where one seed has no spread.
    """

    value: float
    margin: float

    def judge(self, bound: float = 0.0) -> Verdict:
        """The verdict on "it is above the bound": only an interval that leaves it out decides."""
        if self.value - self.margin > bound:
            return HOLDS
        return FAILS if self.value + self.margin < bound else OPEN

    def __str__(self) -> str:
        if math.isinf(self.margin):
            return f"{self.value:+.2f}"
        return f"{self.value:+.2f} ± {self.margin:.2f}"

    @property
    def caveat(self) -> str:
        """What a reader must know: one seed decides nothing."""
        return " (one seed)" if math.isinf(self.margin) else ""


def estimate(*terms: tuple[float, pd.Series]) -> Estimate:
    """A sum of means, each with its weight, by the t distribution.

    With weights 1 and -1 it is Welch's difference of two samples, with a single term Student's
    mean of one, with four the difference of two differences. The degrees of freedom are
    Welch's and Satterthwaite's: (Σ wᵢ² sᵢ²/nᵢ)² / Σ (wᵢ² sᵢ²/nᵢ)² / (nᵢ − 1).

    Args:
        terms: weight, and one value for each seed; seeds are independent between terms.
    """
    value = sum(weight * float(sample.mean()) for weight, sample in terms)
    if any(len(sample) < 2 for _, sample in terms):
        return Estimate(value, math.inf)
    parts = [(w * w * float(x.var()) / len(x), len(x) - 1) for w, x in terms]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Estimate(value, 0.0)
    freedom = variance**2 / sum(part**2 / n for part, n in parts)
    return Estimate(value, float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * variance**0.5)


def judge_count(more: int, of: int) -> Verdict:
    """The verdict on "more often than not", by an exact sign test at the same confidence."""
    if of == 0 or stats.binomtest(more, of).pvalue > 1 - CONFIDENCE:
        return OPEN
    return HOLDS if 2 * more > of else FAILS
