"""Small results of one model, read for the report: windows before tuning, curves, CKA."""

from pathlib import Path

import numpy as np
import pandas as pd

from study.config import Params
from study.report.choices import MERGES
from study.report.results import find_file, read_metric

_NOT_METRICS = ("step", "loss", "learning_rate", "trained_in", "hardware")


def read_windows(roots: list[Path], model: str, params: Params) -> pd.DataFrame:
    """Every candidate of a model's methods, scored before tuning, and the base once.

    Args:
        roots: what `list_roots` returned; methods that have no file there are left out.
        model: its name.
        params: which methods its variants use.

    Returns:
        method, ratio, removed, kind, layers, metric, unit, direction, value; no rows without files.
    """
    methods = params.methods_of(model)
    paths = [find_file(roots, model, f"windows/{method}.csv") for method in methods]
    tables = [pd.read_csv(path, dtype={"layers": object}) for path in paths if path]
    rows = [row for table in tables for row in table.to_dict("records")]
    columns = ["method", "ratio", "removed", "kind", "layers", "metric", "unit", "direction"]
    table = pd.DataFrame(rows, columns=[*columns, "value"])
    return table[(table.method != "base") | ~table.method.duplicated()].reset_index(drop=True)


def find_base(windows: pd.DataFrame) -> float:
    """The uncompressed model's score on the data that the windows were scored on."""
    return float(windows[windows.method == "base"].value.iloc[0])


def measure_gains(windows: pd.DataFrame) -> pd.DataFrame:
    """How much better permute is than vanilla at every window, before tuning.

    Args:
        windows: what `read_windows` returned.

    Returns:
        ratio, removed, layers, gain in the metric's unit (above 0: permute is better); no rows
        where only one of the two methods was scored.
    """
    merged = windows[windows.method.isin(MERGES)]
    keys = ["ratio", "removed", "layers"]
    if merged.method.nunique() < len(MERGES):
        return pd.DataFrame(columns=[*keys, "gain"])
    wide = merged.pivot(index=keys, columns="method", values="value").dropna()
    sign = 1 if read_metric(merged).higher_is_better else -1
    return (sign * (wide.permute - wide.vanilla)).rename("gain").reset_index()


def count_helped(windows: pd.DataFrame) -> pd.DataFrame:
    """How often permuting helps before tuning, for each number of FF sublayers removed.

    Args:
        windows: what `read_windows` returned.

    Returns:
        A table for the page; empty where only one of the two methods was scored.
    """
    gains = measure_gains(windows)
    if gains.empty:
        return pd.DataFrame()
    by_count = gains.groupby("removed").gain
    table = by_count.agg(Windows="size", Better=lambda gain: int((gain > 0).sum()))
    table["Median gain"] = by_count.median().map("{:+,.2f}".format)
    table["Metric"] = read_metric(windows[windows.method != "base"]).label
    table = table.rename(columns={"Better": "Permute better"})
    return table.rename_axis("FFs removed").reset_index()


def read_curves(roots: list[Path], model: str, params: Params) -> pd.DataFrame:
    """The learning curves of a model's main variants, where they are there.

    Args:
        roots: what `list_roots` returned.
        model: its name.
        params: which variants and seeds.

    Returns:
        variant, method, ratio, seed, step, metric, value (on validation data, in the precision of
        tuning).
    """
    parts = []
    for variant in params.compared(model):
        recipe = params.recipe(variant)
        for seed in params.seeds_of(model, variant):
            if path := find_file(roots, model, f"curves/{variant}-{seed}.csv"):
                labels = {"variant": variant, "method": recipe.method, "ratio": recipe.ratio}
                parts += _read_curve(path, labels | {"seed": seed})
    columns = ["variant", "method", "ratio", "seed", "step", "metric", "value"]
    return pd.DataFrame(parts, columns=columns)


def find_start(curves: pd.DataFrame) -> float | None:
    """The uncompressed model's score before its own tuning, in the precision of tuning.

    Args:
        curves: what `read_curves` returned.

    Returns:
        None where the base was not tuned.
    """
    start = curves[(curves.method == "base") & (curves.step == 0)].value
    return None if start.empty else float(start.iloc[0])


def read_similarity(roots: list[Path], model: str) -> pd.DataFrame:
    """cka.csv of a model: CKA of all pairs of sublayers' outputs.

    The stacks of a translator see different tokens, so only pairs within one are there.

    Args:
        roots: what `list_roots` returned.
        model: its name.

    Returns:
        kind ("ff" or "attention"), stack, a, b (layers), cka; no rows if the file is not there.
    """
    path = find_file(roots, model, "cka.csv")
    columns = ["kind", "stack", "a", "b", "cka"]
    return pd.DataFrame(columns=columns) if path is None else pd.read_csv(path)[columns]


def _read_curve(path: Path, labels: dict) -> list[dict]:
    curve = pd.read_csv(path)
    metric = next(name for name in curve if name not in _NOT_METRICS)
    points = curve[np.isfinite(curve[metric])]
    pairs = zip(points.step, points[metric], strict=True)
    return [labels | {"step": step, "metric": metric, "value": value} for step, value in pairs]
