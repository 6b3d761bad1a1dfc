"""Rows of results.csv: one metric of one model state, with all that is needed to plot it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from study.metrics import Metric

if TYPE_CHECKING:  # the report reads COLUMNS without torch
    from study.tasks import Score
    from study.variants import Variant

COLUMNS = [
    "model",
    "variant",
    "method",
    "ratio",
    "removed",
    "kind",
    "layers",
    "anchor",
    "seed",
    "phase",
    "metric",
    "unit",
    "direction",
    "value",
    "n_examples",
    "parameters",
    "parameter_ratio",
    "bytes",
    "flops",
    "precision",
    "signature",
]


def make_rows(
    score: Score,
    model: str,
    variant: Variant,
    phase: str,
    seed: int | None,
    parameters: int,
    base_parameters: int,
    n_bytes: int,
    flops: float,
    precision: str = "float32",
) -> list[dict]:
    """The rows of one scored model: one for each metric (Table 10).

    Args:
        score: on the test split.
        model: its name in params.yaml.
        variant: how it is compressed, and how much that removes.
        phase: "base", "merged" (compressed, not tuned), "tuned", or "first words" (no model).
        seed: of the tuning, if there was one.
        parameters, base_parameters: of this model and of the uncompressed one, embeddings
            included, shared ones once; their quotient is the paper's compression ratio.
        n_bytes: of the weights, shared ones once.
        flops: of a forward pass, per token.
        precision: of the weights: "float32", "int8" or "nf4"; "sparse" where zeros are not stored.

    Returns:
        Dictionaries with the keys of `COLUMNS`, in that order.
    """
    shared = variant.columns() | {
        "model": model,
        "seed": seed,
        "phase": phase,
        "n_examples": score.n_examples,
        "parameters": parameters,
        "parameter_ratio": parameters / base_parameters,
        "bytes": n_bytes,
        "flops": flops,
        "precision": precision,
    }
    rows = []
    for metric, value in score.values.items():
        row = {
            "metric": metric.name,
            "unit": metric.unit,
            "direction": metric.direction,
            "value": value,
            "signature": score.signatures.get(metric.name),
        }
        rows.append({column: (shared | row)[column] for column in COLUMNS})
    return rows


def tabulate_scores(
    metric: Metric, uncompressed: float, method: str, removes: str, counts: dict, scored: dict
) -> pd.DataFrame:
    """Every candidate of one method with its score before tuning, the base first.

    Args:
        metric: of the scores.
        uncompressed: the base's score on the same data.
        method: its name.
        removes: what it counts.
        counts: ratio to how much goes.
        scored: ratio to pairs of plan and score.

    Returns:
        method, ratio, removed, kind, layers, metric, unit, direction, value.
    """
    rows = [("base", None, 0, None, None, uncompressed)]
    for ratio, pairs in scored.items():
        rows += [(method, ratio, counts[ratio], removes, str(plan), v) for plan, v in pairs]
    names = ["method", "ratio", "removed", "kind", "layers", "value"]
    table = pd.DataFrame(rows, columns=names)
    told = {"metric": metric.name, "unit": metric.unit, "direction": metric.direction}
    return table.assign(**told)[[*names[:-1], *told, "value"]]


def write_answers(score: Score, folder: Path) -> None:
    """Write a model's answers beside what was expected, for other metrics such as COMET.

    Args:
        score: with answers.
        folder: made if it is not there; for a translator it holds source.txt, reference.txt and
            translation.txt, with one example in each line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in score.answers.items():
        one_line = (" ".join(line.split()) for line in lines)
        (folder / f"{name}.txt").write_text("\n".join(one_line) + "\n", encoding="utf-8")
