"""Rows of results.csv: one metric of one model state, with all that is needed to plot it."""

from ffmerge.selection import format_window
from ffmerge.tasks import Score

COLUMNS = [
    "model",
    "variant",
    "method",
    "removed",
    "window",
    "anchor",
    "seed",
    "phase",
    "metric",
    "value",
    "n_examples",
    "parameters",
    "parameter_ratio",
    "bytes",
]


def make_rows(
    score: Score,
    labels: dict,
    phase: str,
    seed: int | None,
    parameters: int,
    base_parameters: int,
    n_bytes: int,
) -> list[dict]:
    """The rows of one scored model: one for each metric (Table 10).

    Args:
        score: on the test split.
        labels: model, variant, method, removed, window and anchor.
        phase: "base", "merged" (compressed, not tuned) or "tuned".
        seed: of the tuning, if there was one.
        parameters, base_parameters: of this model and of the uncompressed one, embeddings
            included, shared ones once; their quotient is the paper's compression ratio.
        n_bytes: of the weights on disk.

    Returns:
        Dictionaries with the keys of `COLUMNS`, in that order.
    """
    window = labels["window"]
    shared = labels | {
        "window": None if window is None else format_window(window),
        "seed": seed,
        "phase": phase,
        "n_examples": score.n_examples,
        "parameters": parameters,
        "parameter_ratio": parameters / base_parameters,
        "bytes": n_bytes,
    }
    return [
        {column: (shared | {"metric": metric, "value": value})[column] for column in COLUMNS}
        for metric, value in score.values.items()
    ]
