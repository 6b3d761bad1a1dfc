"""The reviewers' doubts as claims, tested as the paper's are: statistic, interval, verdict.

Before tuning there is one number of each variant. Of a share of examples its interval is the
binomial's, as if two models were tested on different examples, which makes it wider than it is;
of other metrics there is none, and what is below a bound of ours is undecided. After tuning the
interval is over seeds, by the t distribution.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from study.config import Params
from study.report.ablations import find_best
from study.report.claims import Finding, Scores, tabulate_findings
from study.report.estimates import FAILS, HOLDS, Estimate, estimate
from study.report.results import list_models
from study.report.scores import read_windows
from study.report.standings import LEAST, RATIOS, measure_contest

SAYS = "Reviewers: "  # how these claims start
PRUNED = "the best pruning of neurons"
# What is claimed, and the two sides: a method's name, or the best of those that prune neurons.
PAIRS = (
    ("merging ≥ pruning neurons, at equal parameters", "permute", PRUNED),
    ("averaging ≥ copying one FF", "permute", "copy"),
    ("averaging ≥ one random FF", "permute", "random"),
    ("merging FFs ≥ leaving them out", "permute", "ff_drop"),
    ("merging a trained model ≥ sharing from scratch", "permute", "scratch"),
    ("one window ≥ several groups", "permute", "groups"),
    ("groups of neighbours ≥ groups of any", "groups", "groups_free"),
    ("one refitted window ≥ several refitted groups", "refit", "groups_refit"),
    ("least squares ≥ the paper's average (permute)", "refit", "permute"),
    ("a budget for two neighbours (pool) ≥ an even one (OBS)", "pool", "neurons_obs_refit"),
)
HEADLINE = "merging with tuning ≥ pruning neurons without any"
CHEAPER = "FLOPs fall only where something is removed"


def table_doubts(
    results: pd.DataFrame, paper: pd.DataFrame, params: Params, roots: list[Path]
) -> pd.DataFrame:
    """Every doubt of the reviewers that these results can test; what is not there tests none.

    Args:
        results: results.csv.
        paper: the paper's numbers.
        params: which models and variants there are.
        roots: what `list_roots` returned, for windows: they say which pruning is the best.

    Returns:
        Claim, Model, Statistic, Verdict, as `table_claims`.
    """
    found: list[Finding] = []
    for model in list_models(results, params):
        windows = read_windows(roots, model, params)
        scores = Scores(results, paper, windows, params, model)
        table = measure_contest(results, params, model)
        case = Case(scores, table, find_best(windows))
        found += [*_compare_pairs(case), *_prune_untuned(case), *_count_flops(case)]
    table = tabulate_findings(found, _list_claims())
    return table.assign(Claim=SAYS + table.Claim)


def _list_claims() -> list[str]:
    before, after = ([f"{claim}, {when} tuning" for claim, *_ in PAIRS] for when in WHEN)
    pairs = [claim for both in zip(before, after, strict=True) for claim in both]
    return [*pairs[:2], HEADLINE, *pairs[2:], CHEAPER]


WHEN = ("before", "after")


@dataclass(frozen=True)
class Case:
    """One model: its tuned scores seed by seed, its contest, and what was best on validation.

    Attributes:
        scores: in percent of the base tuned alike.
        table: what `measure_contest` returned.
        best: what `find_best` returned.
    """

    scores: Scores
    table: pd.DataFrame
    best: pd.DataFrame

    def find(self, side: str, ratio: str, state: str) -> pd.Series | None:
        """A side's variant at one ratio in one state ("untuned", "tuned"); None without one.

        Of those that prune neurons the one that is tuned with most seeds, and of these the best on
        validation data: no test score chooses.
        """
        rows = self.table[(self.table.ratio == ratio) & self.table[state].notna()]
        if side != PRUNED:
            rows = rows[rows.method == side]
        else:
            is_within = (rows.family == "removes") & (rows.kind == "FF sublayers")
            rows = rows[is_within & (rows.method != "ff_drop")]  # which removes whole ones
            scored = self.best[self.best.ratio == ratio].set_index("method").kept
            rows = rows.assign(chosen=rows.method.map(scored).astype(float).fillna(-math.inf))
            seeds = ["seeds"] if state == "tuned" else []
            rows = rows.sort_values([*seeds, "chosen"], ascending=False, kind="stable")
        return rows.iloc[0] if len(rows) else None

    def compare(self, a: pd.Series, b: pd.Series, state: str) -> tuple[Estimate, str]:
        """The difference of two variants in one state, and how to print it."""
        if state == "tuned":
            d = estimate((1, self.scores.kept(a.variant)), (-1, self.scores.kept(b.variant)))
            return d, f"{d} %{d.caveat}"
        value, error = a.untuned - b.untuned, math.hypot(a.error, b.error)
        if math.isnan(error):
            return Estimate(value, LEAST), f"{value:+.2f} % (one number; our bound: {LEAST})"
        return Estimate(value, error), f"{value:+.2f} ± {error:.2f} % (test examples)"


def _compare_pairs(case: Case) -> Iterator[Finding]:
    for claim, left, right in PAIRS:
        for when, state in zip(WHEN, ("untuned", "tuned"), strict=True):
            if (right, state) == ("scratch", "untuned"):
                continue  # it has seen nothing yet
            for ratio in RATIOS:
                a, b = (case.find(side, ratio, state) for side in (left, right))
                if a is not None and b is not None:
                    d, printed = case.compare(a, b, state)
                    text = f"{a.removed} removed: {a.label} − {b.label} = {printed}"
                    yield case.scores.says(f"{claim}, {when} tuning", text, d.judge())


def _prune_untuned(case: Case) -> Iterator[Finding]:
    """The paper's method with its tuning against a closed form: seeds are of the former alone."""
    s = case.scores
    for ratio in RATIOS:
        a, b = case.find("permute", ratio, "tuned"), case.find(PRUNED, ratio, "untuned")
        if a is None or b is None or not s.reference.taught:
            continue  # what tuning teaches, an untuned model was never taught
        kept = s.kept(a.variant)
        mean, base = estimate((1, kept)), s.reference
        pruned = b.untuned * float(s.metric.retained(base.untuned, base.value)) / 100
        d = Estimate(mean.value - pruned, mean.margin)
        text = f"{a.removed} removed: {a.label}, tuned − {b.label}, not tuned = {d} %{d.caveat}"
        yield s.says(HEADLINE, text, d.judge())


def _count_flops(case: Case) -> Iterator[Finding]:
    table = case.table.dropna(subset="flops")
    shares, removes = (table[table.family == family].flops for family in ("shares", "removes"))
    if len(shares) and len(removes):
        holds = shares.round(2).eq(100).all() and removes.round(2).lt(100).all()
        ends = dict.fromkeys(f"{n:.0f}" for n in (removes.min(), removes.max()))
        text = f"kept: sharing {shares.min():.0f} %, removing {' to '.join(ends)} % of the FLOPs "
        text += "per token"
        yield case.scores.says(CHEAPER, text, HOLDS if holds else FAILS)
