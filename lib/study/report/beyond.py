"""What notebook 8 measures, model by model: where sharing enters, and what makes no difference."""

from pathlib import Path

import pandas as pd

from study.config import Params
from study.metrics import Metric
from study.report.results import find_file, read_metric
from study.report.scores import read_windows

SHARES = ("2/3", "1/2", "1/4", "1/12")  # of a pair's neurons, stored
WAYS = {"backward": "elimination from all", "forward, sharing": "search from none"}
PRIVATE = ("backward", "forward, private")  # those that keep no merged neuron, or hardly one
MERGES = ("vanilla", "permute", "refit")
BIASES = {
    "private b_out": "a b_out for every layer, not one (%)",
    "private b_out and scale": "… that brings the mean back, and a scale for the spread (%)",
}


def table_beyond(roots: list[Path], params: Params, models: list[str]) -> pd.DataFrame:
    """One row for each thing that notebook 8 measures, on validation data, before any tuning.

    Args:
        roots: what `list_roots` returned.
        params: which methods there are.
        models: their names; those that notebook 8 did not run for are left out.

    Returns:
        Measured, At, and a column per model with as many numbers as At has parts.
    """
    columns = {}
    for model in models:
        path = find_file(roots, model, "beyond.csv")
        windows = read_windows(roots, model, params)
        if path is not None and len(windows):
            rows = pd.read_csv(path).fillna({"stack": "", "layers": ""})
            columns[model] = _measure(rows, read_metric(windows))
    if not columns:
        return pd.DataFrame()
    table = pd.DataFrame(columns).fillna("–")
    return table.rename_axis(["Measured", "At"]).reset_index()


def _measure(rows: pd.DataFrame, metric: Metric) -> dict[tuple[str, str], str]:
    """(what, where) to what one model's beyond.csv says of it."""
    values = {(r.kind, r.setting, r.key): r.value for r in rows.itertuples()}
    shares = metric.retained(rows.value, values["score", "base", metric.name])
    kept = dict(zip(zip(rows.kind, rows.setting, rows.key, strict=True), shares, strict=True))

    def keep(*key: str) -> float:
        return kept[key]  # % of the base's quality

    def change(kind: str, setting: str, before: str, after: str) -> str:
        return f"{keep(kind, setting, after) - keep(kind, setting, before):+.1f}"

    found = {}
    for way, words in WAYS.items():
        said = [f"{_count_merged(rows, way, share):.1f}" for share in SHARES]
        found[f"merged neurons among those kept, {words} (%)", _join(SHARES)] = _join(said)
    errors = [_lower(values, share) for share in SHARES]
    found["squared error, sharing against private only (%)", _join(SHARES)] = _join(errors)
    smallest = SHARES[2:]
    scores = [
        keep("pool", f"forward, sharing, {share}", metric.name)
        - max(keep("pool", f"{way}, {share}", metric.name) for way in PRIVATE)
        for share in smallest
    ]
    scores = [f"{score:+.1f}" for score in scores]
    found["quality, sharing against private only (%)", _join(smallest)] = _join(scores)
    spread = [f"{100 * values['spread', name, 'output']:.0f}" for name in MERGES]
    found["spread of merged outputs that is left (%)", _join(MERGES)] = _join(spread)
    costs = {r.setting: r.value for r in rows.itertuples() if r.key.endswith("all windows")}
    ranks = [f"{value:.2f}" for value in costs.values()]
    found["rank correlation of a window's cost and its loss", _join(costs)] = _join(ranks)
    first = next(setting for kind, setting, _ in values if kind == "layerwise")
    turn = change("layerwise", first, "one pass", "layer by layer")
    found["statistics after every layer, not one pass (%)", first] = turn
    for own, words in BIASES.items():
        private = [
            change("b_out", method, "shared b_out", own)
            for method in ("permute", "refit")
            if ("b_out", method, own) in values
        ]
        found[words, "permute / refit"] = _join(private) or "no biases"
    for kind, words in (("ridge", "λ"), ("tokens", "tokens for each neuron")):
        tried = [setting for k, setting, _ in values if k == kind]
        scores = [f"{keep(kind, setting, metric.name):.1f}" for setting in tried]
        found[f"quality kept by {words} (%)", _join(tried)] = _join(scores)
    return found


def _count_merged(rows: pd.DataFrame, way: str, share: str) -> float:
    """Percent of the neurons that all pairs keep which both layers run."""
    part = rows[(rows.kind == "pool") & (rows.setting == f"{way}, {share}") & (rows.layers != "")]
    return 100 * part[part.key == "merged"].value.sum() / part.value.sum()


def _lower(values: dict[tuple[str, str, str], float], share: str) -> str:
    private = min(values["pool", f"{way}, {share}", "error"] for way in PRIVATE)
    return f"{100 * (values['pool', f'forward, sharing, {share}', 'error'] / private - 1):+.1f}"


def _join(parts) -> str:
    return " / ".join(parts)
