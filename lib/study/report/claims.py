"""The paper's claims, each with the statistic that tests it, its interval, and a verdict per model.

A verdict needs an interval: a claim about tuned models holds if 95 % of the t distribution lies on
its side of the bound, does not hold if it lies on the other, and else is undecided. One seed never
decides.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from study.config import Params
from study.report.choices import find_variant, list_ratios, name_anchors, name_windows
from study.report.estimates import FAILS, HOLDS, OPEN, Estimate, Verdict, estimate, judge_count
from study.report.paper import find_loss
from study.report.results import (
    find_reference,
    list_models,
    read_metric,
    select_metric,
    summarise,
)
from study.report.scores import find_base, measure_gains, read_similarity, read_windows

ABOUT = 2.0  # percent of the base's quality: what "about the same" may cost; ours, not the paper's
ANCHORS = 1.0  # percent that anchors may differ by; ours
INT8 = 0.5  # percent that 8 bits may cost; ours
FAIR = 2.0  # points of the parameters that the better of two models may be larger by
COLUMNS = ["Claim", "Model", "Statistic", "Verdict"]


@dataclass(frozen=True)
class Finding:
    """One claim on one model: the statistic in words and the verdict."""

    claim: str
    model: str
    statistic: str
    verdict: Verdict


def table_claims(
    results: pd.DataFrame, paper: pd.DataFrame, params: Params, roots: list[Path]
) -> pd.DataFrame:
    """Every claim of the paper that these results can test; what is not there tests none.

    Args:
        results: results.csv.
        paper: the paper's numbers.
        params: which models and variants there are.
        roots: what `list_roots` returned, for windows and CKA.

    Returns:
        Claim, Model, Statistic, Verdict: the claims in the paper's order.
    """
    found: list[Finding] = []
    for model in list_models(results, params):
        windows = read_windows(roots, model, params)
        scores = Scores(results, paper, windows, params, model)
        for test in TESTS:
            found += test(scores)
        found += _alike(scores, read_similarity(roots, model))
    return tabulate_findings(found, dict.fromkeys(finding.claim for finding in found))


def tabulate_findings(found: list[Finding], claims: Iterable[str]) -> pd.DataFrame:
    """Findings as rows of claims.md, those of one claim together.

    Args:
        found: of all models, one after the other.
        claims: in the order in which they are to stand.
    """
    rows = [[f.claim, f.model, f.statistic, f.verdict] for f in found]
    table, order = pd.DataFrame(rows, columns=COLUMNS), {c: i for i, c in enumerate(claims)}
    return table.sort_values("Claim", key=lambda c: c.map(order), kind="stable", ignore_index=True)


class Scores:
    """One model's scores as percentages of the base's quality, so that all metrics read alike.

    Args:
        results: results.csv.
        paper: what `read_paper` returned.
        windows: what `read_windows` returned.
        params: which variants there are.
        model: its name.
    """

    def __init__(
        self,
        results: pd.DataFrame,
        paper: pd.DataFrame,
        windows: pd.DataFrame,
        params: Params,
        model: str,
    ) -> None:
        self.float = select_metric(results, model)
        self.int8 = select_metric(results, model, int8=True)
        self.paper, self.windows, self.params, self.model = paper, windows, params, model
        self.metric = read_metric(self.float)
        self.reference = find_reference(self.float, model, params)

    def raw(self, variant: str | None, int8: bool = False) -> pd.Series:
        """The tuned variant's values, one for each seed, by seed; none without such a variant."""
        part = self.int8 if int8 else self.float
        return part[(part.variant == variant) & (part.phase == "tuned")].set_index("seed").value

    def kept(self, variant: str | None, int8: bool = False) -> pd.Series:
        """The same as quality kept, in percent of `Reference.value`."""
        return self.metric.retained(self.raw(variant, int8), self.reference.value)

    def find(self, method: str, ratio: str | None) -> str | None:
        """A method's main variant at one ratio; None without one."""
        return find_variant(self.params, self.model, method, ratio)

    def both(self, ratio: str) -> tuple[pd.Series, pd.Series]:
        """What permute and vanilla keep at one ratio."""
        return self.kept(self.find("permute", ratio)), self.kept(self.find("vanilla", ratio))

    def control(self) -> pd.Series:
        """What the base keeps that was tuned alike, 100 on average; none if it was not tuned."""
        rows = self.float[(self.float.method == "base") & (self.float.phase == "tuned")]
        return self.kept(rows.variant.iloc[0]) if len(rows) else pd.Series(dtype=float)

    def says(self, claim: str, statistic: str, verdict: Verdict) -> Finding:
        """A finding about this model."""
        return Finding(claim, self.model, statistic, verdict)


def _loss(s: Scores) -> tuple[Estimate, str] | None:
    """What merging a third costs against the base tuned alike, in percent and in the metric."""
    merged, control = s.kept(s.find("permute", "third")), s.control()
    if merged.empty:
        return None
    change = s.raw(s.find("permute", "third")).mean() - s.reference.value
    there = f"{s.metric.name} {change:+.2f}"
    if control.empty:  # a single number without a spread
        return estimate((1, merged - 100)), there
    return estimate((1, merged), (-1, control)), there


def _about_base(s: Scores) -> Iterator[Finding]:
    if loss := _loss(s):
        d, absolute = loss
        text = f"{d} %{d.caveat}, {absolute}"
        yield s.says(
            f"1/3 merged ≈ base: costs at most {ABOUT:.0f} % (our bound)", text, d.judge(-ABOUT)
        )


def _as_the_paper(s: Scores) -> Iterator[Finding]:
    loss = _loss(s)
    theirs = find_loss(s.paper, s.params.model(s.model).paper, "third", s.metric)
    if not loss or not theirs:
        return
    (d, absolute), (base, merged) = loss, theirs
    bound = float(s.metric.retained(merged, base)) - 100
    text = f"here {d} %{d.caveat}, {absolute}; the paper {bound:+.1f} %, {merged - base:+.2f}"
    if s.params.model(s.model).adapts:
        text += "; both tuned through QLoRA"
    yield s.says("… costs no more than the paper's own model", text, d.judge(bound))


def _permute_wins(s: Scores) -> Iterator[Finding]:
    for ratio in list_ratios(s.params, s.model):
        permute, vanilla = s.both(ratio)
        if len(permute) and len(vanilla):
            d = estimate((1, permute), (-1, vanilla))
            removed = s.params.model(s.model).removed[ratio]
            text = f"{removed} removed: permute − vanilla = {d} %{d.caveat}"
            yield s.says("permute ≥ vanilla, after tuning", text, d.judge())


def _gap_grows(s: Scores) -> Iterator[Finding]:
    """On the scale of percent and, for a perplexity, of its logarithm: both may tell their own."""
    scales = {"%": lambda kept: kept}
    if not s.metric.higher_is_better:
        scales["hundredths of log-perplexity"] = lambda kept: 100 * np.log(kept / 100)
    ratios = [r for r in list_ratios(s.params, s.model) if all(map(len, s.both(r)))]
    for low, high in pairwise(ratios):
        for unit, scale in scales.items():
            (p1, v1), (p0, v0) = (map(scale, s.both(ratio)) for ratio in (high, low))
            d = estimate((1, p1), (-1, v1), (-1, p0), (1, v0))
            text = f"from {low} to {high} the gap changes by {d} {unit}{d.caveat}"
            yield s.says("… the more so, the more is removed", text, d.judge())


def _merge_beats_drop(s: Scores) -> Iterator[Finding]:
    saved = 100 * (1 - summarise(s.float).parameter_ratio)
    merges = [s.find("permute", ratio) for ratio in list_ratios(s.params, s.model)]
    merges = [name for name in merges if name in saved.index]
    for drop in s.params.variants_by(s.model, "drop"):
        if drop not in saved.index or not merges:
            continue
        merge = min(merges, key=lambda name: abs(saved[name] - saved[drop]))
        d, larger = estimate((1, s.kept(merge)), (-1, s.kept(drop))), saved[drop] - saved[merge]
        verdict = d.judge()
        if (verdict == HOLDS and larger > FAIR) or (verdict == FAILS and larger < -FAIR):
            verdict = OPEN  # its size may be why it is better
        size = f"the {'merge' if larger > 0 else 'drop'} is larger by {abs(larger):.1f} points"
        text = f"{merge} (−{saved[merge]:.1f} %) − {drop} (−{saved[drop]:.1f} %) = {d} %{d.caveat}"
        claim = "merge ≥ drop, at the nearest number of parameters"
        yield s.says(claim, f"{text}; {size}", verdict)


def _int8(s: Scores) -> Iterator[Finding]:
    merge = s.find("permute", "third")
    change = (s.kept(merge, int8=True) - s.kept(merge)).dropna()  # the same models, twice
    if len(change):
        d = estimate((1, change))
        text = f"merged: int8 − float32 = {d} %{d.caveat}"
        claim = f"int8 composes with merging: costs at most {INT8} % (our bound)"
        yield s.says(claim, text, d.judge(-INT8))


def _windows_before(s: Scores) -> Iterator[Finding]:
    gains = measure_gains(s.windows).gain  # scored by the model's own task, not the downstream one
    if len(gains):
        better = int((gains > 0).sum())
        text = f"better at {better} of {len(gains)} windows"
        yield s.says("permute ≥ vanilla, before tuning", text, judge_count(better, len(gains)))


def _window_matters(s: Scores) -> Iterator[Finding]:
    names = list(name_windows(s.params, s.model, "third"))
    after = _span([s.kept(name) for name in names])
    rows = s.windows[(s.windows.method == "permute") & (s.windows.ratio == "third")]
    if after is None or len(rows) < 3:
        return
    before = read_metric(rows).retained(rows.set_index("layers").value, find_base(s.windows))
    tuned = before[before.index.isin(s.float[s.float.variant.isin(names)].layers)]
    spans = [float(x.max() - x.min()) for x in (before, tuned)]
    text = (
        f"before: all {len(before)} windows span {spans[0]:.1f} %, {len(tuned)} of them "
        f"{spans[1]:.1f} %; after: those {after.value:.1f} %{after.caveat}"
    )
    verdict = judge_little(after, min(2 * ABOUT, spans[1] / 2)) if spans[0] > 2 * ABOUT else FAILS
    yield s.says("the window matters before tuning and little after", text, verdict)


def _anchor(s: Scores) -> Iterator[Finding]:
    names = name_anchors(s.params, s.model, "third")
    if span := _span([s.kept(name) for name in names]):
        claim = f"the anchor hardly matters: at most {ANCHORS:.0f} % (our bound)"
        text = f"{len(names)} anchors span {span.value:.2f} % after tuning{span.caveat}"
        yield s.says(claim, text, judge_little(span, ANCHORS))


def judge_little(span: Estimate, bound: float) -> Verdict:
    """The verdict on "it is below the bound", of a span that is never negative."""
    return Estimate(-span.value, span.margin).judge(-bound)


def _span(samples: list[pd.Series]) -> Estimate | None:
    """From the worst of some variants to the best, over the seeds that all have; None without two.

    The two are picked by their means, so that their distance errs towards the larger.
    """
    samples = [sample for sample in samples if len(sample)]
    if len(samples) < 2:
        return None
    seeds = set.intersection(*(set(sample.index) for sample in samples))
    samples = [sample[sample.index.isin(seeds)] if seeds else sample for sample in samples]
    samples.sort(key=lambda sample: sample.mean())
    return estimate((1, samples[-1]), (-1, samples[0]))


def _alike(s: Scores, similarity: pd.DataFrame) -> Iterator[Finding]:
    pairs = similarity[similarity.a < similarity.b]
    if pairs.kind.nunique() < 2:
        return
    wide = pairs.pivot(index=["stack", "a", "b"], columns="kind", values="cka")
    more, n, means = int((wide.ff > wide.attention).sum()), len(wide), wide.mean()
    yield s.says(
        "FF outputs are more alike than attention outputs (at 3 of 4 pairs)",
        f"mean CKA {means.ff:.2f} against {means.attention:.2f}; higher for {more} of {n} pairs",
        HOLDS if more > 0.75 * n else FAILS if more < 0.5 * n else OPEN,
    )


TESTS = (
    _about_base,
    _as_the_paper,
    _permute_wins,
    _gap_grows,
    _merge_beats_drop,
    _int8,
    _windows_before,
    _window_matters,
    _anchor,
)
