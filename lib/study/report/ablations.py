"""What each idea adds: two methods that differ by it, before tuning and after."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from study.config import Params
from study.report.choices import list_ratios
from study.report.claims import Scores
from study.report.estimates import Estimate, estimate
from study.report.results import read_metric
from study.report.scores import find_base, read_windows
from study.report.standings import LEAST
from study.report.style import find_look

# The idea, the method without it and the one with it.
IDEAS = (
    ("start from trained FFs", "random", "permute"),
    ("average, not copy", "copy", "permute"),
    ("align before averaging", "vanilla", "permute"),
    ("least squares for a shared FF", "permute", "refit"),
    ("several groups, not one window", "permute", "groups"),
    ("… that need not be neighbours", "groups", "groups_free"),
    ("… of refitted FFs", "refit", "groups_refit"),
    ("… and least squares", "groups", "groups_refit"),
    ("… and regression on the base's outputs", "groups_refit", "groups_local"),
    ("share, not leave out", "ff_drop", "permute"),
    ("least squares after magnitude", "neurons_magnitude", "neurons_magnitude_refit"),
    ("… after activation × output", "neurons_activation", "neurons_activation_refit"),
    ("… after Taylor", "neurons_taylor", "neurons_taylor_refit"),
    ("… after OBS's order", "neurons_obs", "neurons_obs_refit"),
    ("OBS's order, not activation × output", "neurons_activation_refit", "neurons_obs_refit"),
    ("one budget for all sublayers", "neurons_obs_refit", "neurons_obs_budget"),
    ("one budget for two neighbours", "neurons_obs_refit", "pool"),
    ("layers by Block Influence, not by trial", "drop", "drop_influence"),
    ("layers by angle, not by trial", "drop", "drop_angle"),
)
HELPS, MIXED, SAME = "helps", "mixed", "no difference"
NEGATIVE = "**negative result**"


def table_ablations(roots: list[Path], params: Params, models: list[str]) -> pd.DataFrame:
    """What each idea adds before tuning, in percent of the base's quality, at each ratio.

    The best candidate of each method on validation data counts, at every ratio that both have,
    whether a variant of it is evaluated on the test split or not.

    Args:
        roots: what `list_roots` returned.
        params: which methods there are.
        models: the columns.

    Returns:
        Idea, From → to, a column per model with the differences, smallest ratio first, Better at,
        and Verdict; ideas of which no model has both methods are left out.
    """
    best = {model: find_best(read_windows(roots, model, params)) for model in models}
    rows = []
    for idea, without, with_it in IDEAS:
        gains = {m: measure_gain(table, without, with_it) for m, table in best.items()}
        every = pd.concat(gains.values())
        if every.empty:
            continue
        row = _print_idea(idea, without, with_it, gains, lambda gain: f"{gain:+.1f}")
        row |= {"Better at": f"{int((every > LEAST).sum())} of {len(every)}"}
        rows.append(row | {"Verdict": judge_idea(every)})
    return pd.DataFrame(rows)


def table_tuned(results: pd.DataFrame, params: Params, models: list[str]) -> pd.DataFrame:
    """What each idea adds after tuning, where both methods were tuned.

    Args:
        results: results.csv.
        params: which variants there are.
        models: the columns.

    Returns:
        Idea, From → to, a column per model with the differences on the test split, smallest ratio
        first, ± half of the 95 % interval over seeds (¹: one of the two has a single seed).
    """
    none = pd.DataFrame(columns=["method"])  # neither the paper's numbers nor windows
    scores = {model: Scores(results, none, none, params, model) for model in models}
    rows = []
    for idea, without, with_it in IDEAS:
        gains = {m: _compare_tuned(s, without, with_it) for m, s in scores.items()}
        if not any(gains.values()):
            continue
        rows.append(_print_idea(idea, without, with_it, gains, _print_gain))
    return pd.DataFrame(rows)


def _compare_tuned(s: Scores, without: str, with_it: str) -> list[Estimate]:
    """The differences of two methods after tuning, at each ratio at which both were tuned."""
    found = []
    for ratio in list_ratios(s.params, s.model):
        kept = [s.kept(s.find(method, ratio)) for method in (with_it, without)]
        if s.reference.is_known and all(map(len, kept)):
            found.append(estimate((1, kept[0]), (-1, kept[1])))
    return found


def _print_gain(d: Estimate) -> str:
    return f"{d.value:+.1f}" + ("¹" if math.isinf(d.margin) else f" ± {d.margin:.1f}")


def _print_idea(
    idea: str, without: str, with_it: str, gains: Mapping[str, Iterable], show: Callable
) -> dict[str, str]:
    """A row: the idea, its two methods, and what it adds to each model, ratio by ratio."""
    looks = [find_look(method)["label"] for method in (without, with_it)]
    cells = {model: " / ".join(map(show, gain)) or "–" for model, gain in gains.items()}
    return {"Idea": idea, "From → to": " → ".join(looks)} | cells


def find_best(windows: pd.DataFrame) -> pd.DataFrame:
    """The best candidate of each method at each ratio, before tuning.

    Args:
        windows: what `read_windows` returned.

    Returns:
        method, ratio, removed, kept (% of the base's quality); no rows without a base.
    """
    if "base" not in set(windows.method):
        return pd.DataFrame(columns=["method", "ratio", "removed", "kept"])
    scored = windows[windows.method != "base"].dropna(subset="value")
    kept = scored.assign(kept=read_metric(windows).retained(scored.value, find_base(windows)))
    return kept.groupby(["method", "ratio", "removed"], sort=False).kept.max().reset_index()


def measure_gain(best: pd.DataFrame, without: str, with_it: str) -> pd.Series:
    """How much more one method keeps than another, at each ratio that both have.

    Args:
        best: what `find_best` returned.
        without, with_it: the two methods.

    Returns:
        Percent of the base's quality by ratio, what removes least first.
    """
    pair = [best[best.method == m].set_index("ratio") for m in (without, with_it)]
    ratios = [ratio for ratio in pair[0].sort_values("removed").index if ratio in pair[1].index]
    return (pair[1].kept[ratios] - pair[0].kept[ratios]).astype(float)


def judge_idea(gains: pd.Series) -> str:
    """What an idea is worth, of all its differences; those below `LEAST` count for nothing."""
    better, worse = (gains > LEAST).sum(), (gains < -LEAST).sum()
    if not better:
        return NEGATIVE if worse else SAME
    return HELPS if not worse else MIXED if better > worse else NEGATIVE
