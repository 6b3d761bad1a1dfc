"""The paper's claims, each with the statistic that tests it, its spread, and a verdict per model.

A verdict compares a difference d with its standard error s over seeds: it holds if d − 2s lies on
the claim's side of the bound, does not hold if d + 2s lies on the other, and else is undecided.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from study.config import Params
from study.report.results import (
    base_on_validation,
    is_lower_better,
    read_windows,
    retained,
    select_metric,
    summarise,
)

HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
ABOUT = 2.0  # percent of the base's quality: what "about the same" may cost
QLORA = 5.0  # the same through adapters, where the paper loses 4 %
FAIR = 2.0  # percent of the parameters: how much larger the better of two models may be
RATIOS = ("third", "half", "most")


@dataclass(frozen=True)
class Evidence:
    """One claim on one model: the statistic in words and the verdict."""

    claim: str
    model: str
    statistic: str
    verdict: str


def table_claims(results: pd.DataFrame, params: Params, folder: Path) -> pd.DataFrame:
    """Every claim of the paper that these results can test.

    Args:
        results: results.csv.
        params: which models and variants there are.
        folder: results/models, for windows and CKA.

    Returns:
        Claim, Model, Statistic, Verdict.
    """
    rows: list[Evidence] = []
    for model in params.running:
        scores = _Scores(results, model)
        for test in (_about_base, _permute_wins, _gap_grows, _merge_beats_drop, _int8, _qlora):
            rows += test(scores, params)
        rows += _windows_before(scores, folder / model)
        rows += _window_matters(scores, folder / model)
        rows += _anchor(scores)
        rows += _alike(scores, folder / model)
    table = pd.DataFrame(rows).rename(columns=str.capitalize)
    order = {claim: i for i, claim in enumerate(dict.fromkeys(table.Claim))}
    return table.sort_values("Claim", key=lambda c: c.map(order), kind="stable", ignore_index=True)


class _Scores:
    """One model's scores as percentages of the base's quality, so that all metrics read alike."""

    def __init__(self, results: pd.DataFrame, model: str) -> None:
        part = select_metric(results, model)
        self.model, self.metric = model, part.metric.iloc[0]
        self.base = float(part[part.phase == "base"].value.iloc[0])
        self.float, self.int8 = part, select_metric(results, model, int8=True)
        self.reference = self.base
        control = part[(part.variant == "base-tuned") & (part.phase == "tuned")]
        if len(control):  # what the same tuning does to the untouched model
            self.reference = float(control.value.mean())

    def of(self, variant: str, phase: str = "tuned", int8: bool = False) -> pd.Series:
        """Quality kept, in percent of the tuned base's, one value for each seed."""
        part = self.int8 if int8 else self.float
        mine = part[(part.variant == variant) & (part.phase == phase)].set_index("seed")
        return retained(mine.value, self.reference, self.metric)

    def on_scale(self, variant: str) -> pd.Series:
        """The tuned variant where equal steps mean alike: percent, or for perplexity 0.01 nats."""
        kept = self.of(variant)
        return 100 * np.log(kept / 100) if is_lower_better(self.metric) else kept

    @property
    def unit(self) -> str:
        return "hundredths of a nat" if is_lower_better(self.metric) else "%"

    def evidence(self, claim: str, statistic: str, verdict: str) -> Evidence:
        return Evidence(claim, self.model, statistic, verdict)


def judge(difference: float, error: float, bound: float = 0.0) -> str:
    """The verdict on "the difference is above the bound"."""
    if difference - 2 * error > bound:
        return HOLDS
    return FAILS if difference + 2 * error < bound else OPEN


def _compare(a: pd.Series, b: pd.Series) -> tuple[float, float]:
    """Difference of means and its standard error; a lone value has no spread to offer."""
    variances = [x.var() / len(x) if len(x) > 1 else 0.0 for x in (a, b)]
    return float(a.mean() - b.mean()), float(sum(variances)) ** 0.5


def _about_base(s: _Scores, params: Params) -> Iterator[Evidence]:
    merged, control = s.of("permute-third"), s.of("base-tuned")
    if len(merged) and len(control):
        d, e = _compare(merged, control)
        yield s.evidence(
            f"1/3 merged ≈ base (within {ABOUT:.0f} %)",
            f"{d:+.2f} ± {e:.2f} % of the base tuned alike",
            judge(d, e, -ABOUT),
        )


def _permute_wins(s: _Scores, params: Params) -> Iterator[Evidence]:
    for ratio in RATIOS:
        a, b = s.of(f"permute-{ratio}"), s.of(f"vanilla-{ratio}")
        if len(a) and len(b):
            d, e = _compare(a, b)
            removed = params.models[s.model].removed[ratio]
            yield s.evidence(
                "permute ≥ vanilla, after tuning",
                f"{removed} removed: permute − vanilla = {d:+.2f} ± {e:.2f} %",
                judge(d, e),
            )


def _gap_grows(s: _Scores, params: Params) -> Iterator[Evidence]:
    gaps = {}
    for ratio in RATIOS:
        a, b = s.on_scale(f"permute-{ratio}"), s.on_scale(f"vanilla-{ratio}")
        if len(a) and len(b):
            gaps[ratio] = _compare(a, b)
    for low, high in pairwise(gaps):
        d = gaps[high][0] - gaps[low][0]
        e = (gaps[high][1] ** 2 + gaps[low][1] ** 2) ** 0.5
        yield s.evidence(
            "… the more so, the more is removed",
            f"the gap changes by {d:+.2f} ± {e:.2f} {s.unit} from {low} to {high}",
            judge(d, e),
        )


def _merge_beats_drop(s: _Scores, params: Params) -> Iterator[Evidence]:
    tuned = summarise(s.float)
    merges = tuned[tuned.index.isin([f"permute-{ratio}" for ratio in RATIOS])]
    for drop in (variant for variant in tuned.index if variant.startswith("drop-")):
        if merges.empty:
            continue
        distance = (merges.parameter_ratio - tuned.parameter_ratio[drop]).abs()
        merge = distance.idxmin()
        d, e = _compare(s.of(merge), s.of(drop))
        merge_saves, drop_saves = (100 * (1 - tuned.parameter_ratio[v]) for v in (merge, drop))
        verdict = judge(d, e)
        if (merge_saves - drop_saves) * (-1 if verdict == HOLDS else 1) > FAIR:
            verdict = OPEN  # the better one is also the larger one
        yield s.evidence(
            "merge ≥ drop, at the nearest number of parameters",
            f"{merge} (−{merge_saves:.1f} %) − {drop} (−{drop_saves:.1f} %) = {d:+.2f} ± {e:.2f} %",
            verdict,
        )


def _windows_before(s: _Scores, folder: Path) -> Iterator[Evidence]:
    windows = read_windows(folder)  # scored by the model's own task, not the downstream one
    metric = windows.columns[-1]
    merged = windows[windows.method.isin(["vanilla", "permute"])]
    wide = merged.pivot(index=["removed", "window"], columns="method", values=metric)
    gain = (wide.permute - wide.vanilla) * (-1 if is_lower_better(metric) else 1)
    better, n = int((gain > 0).sum()), len(gain)
    yield s.evidence(
        "permute ≥ vanilla, before tuning",
        f"better at {better} of {n} windows",
        HOLDS if better >= 0.9 * n else FAILS if better <= 0.5 * n else OPEN,
    )


def _window_matters(s: _Scores, folder: Path) -> Iterator[Evidence]:
    names = ["permute-third", "random-1", "random-2", "random-3"]
    after = pd.concat([s.of(name).iloc[:1] for name in names])
    if len(after) < 3:
        return
    windows = read_windows(folder)
    metric = windows.columns[-1]
    scores = windows[(windows.method == "permute") & (windows.ratio == "third")].set_index("window")
    before = retained(scores[metric], base_on_validation(folder), metric)
    tuned = s.float[s.float.variant.isin(names)].window.unique()
    spans = [float(x.max() - x.min()) for x in (before, before[tuned], after)]
    holds = spans[0] > 2 * ABOUT > spans[2] and spans[2] < spans[1] / 2
    yield s.evidence(
        "the window matters before tuning and little after",
        f"before: all {len(before)} windows span {spans[0]:.1f} %, {len(tuned)} of them "
        f"{spans[1]:.1f} %; after: those {spans[2]:.1f} % (one seed)",
        HOLDS if holds else FAILS,
    )


def _anchor(s: _Scores) -> Iterator[Evidence]:
    anchors = [s.of(name).iloc[:1] for name in ("permute-third", "anchor-middle", "anchor-last")]
    values = pd.concat(anchors)
    if len(values) > 1:
        span = float(values.max() - values.min())
        yield s.evidence(
            "the anchor hardly matters",
            f"{len(values)} anchors span {span:.2f} % after tuning (one seed)",
            HOLDS if span < ABOUT / 2 else FAILS if span > ABOUT else OPEN,
        )


def _int8(s: _Scores, params: Params) -> Iterator[Evidence]:
    both = s.of("permute-third", int8=True)
    if len(both):
        change = both - s.of("permute-third")
        d, e = float(change.mean()), float(change.std() / len(change) ** 0.5)
        yield s.evidence(
            "int8 composes with merging (costs less than 0.5 %)",
            f"merged: int8 − float32 = {d:+.2f} ± {e:.2f} %",
            judge(d, e, -0.5),
        )


def _qlora(s: _Scores, params: Params) -> Iterator[Evidence]:
    merged, control = s.of("permute-third"), s.of("base-tuned")
    if s.model in params.qlora.run and len(merged):
        d, e = _compare(merged, control)
        yield s.evidence(
            f"works with SwiGLU and QLoRA (within {QLORA:.0f} %; the paper loses 4 %)",
            f"{d:+.2f} ± {e:.2f} % of the base tuned alike",
            judge(d, e, -QLORA),
        )


def _alike(s: _Scores, folder: Path) -> Iterator[Evidence]:
    cka = pd.read_csv(folder / "cka.csv")
    parts = cka[["a", "b"]].apply(lambda column: column.str.split(" ", expand=True)[1].astype(int))
    pairs = cka[parts.a < parts.b]
    wide = pairs.pivot(index=["a", "b"], columns="kind", values="cka")
    more, n = int((wide.ff > wide.attention).sum()), len(wide)
    means = wide.mean()
    yield s.evidence(
        "FF outputs are more alike than attention outputs",
        f"mean CKA {means.ff:.2f} against {means.attention:.2f}; higher for {more} of {n} pairs",
        HOLDS if more > 0.75 * n else FAILS if more < 0.5 * n else OPEN,
    )
