"""Rows of results.csv: one metric of one model state, with all that is needed to plot it."""

from pathlib import Path

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
    "precision",
    "signature",
]


def make_rows(
    score: Score,
    labels: dict,
    phase: str,
    seed: int | None,
    parameters: int,
    base_parameters: int,
    n_bytes: int,
    precision: str = "float32",
) -> list[dict]:
    """The rows of one scored model: one for each metric (Table 10).

    Args:
        score: on the test split.
        labels: model, variant, method, removed, window and anchor.
        phase: "base", "merged" (compressed, not tuned) or "tuned".
        seed: of the tuning, if there was one.
        parameters, base_parameters: of this model and of the uncompressed one, embeddings
            included, shared ones once; their quotient is the paper's compression ratio.
        n_bytes: of the weights, shared ones once.
        precision: of the weights: "float32", "int8" or "nf4".

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
        "precision": precision,
    }
    rows = []
    for metric, value in score.values.items():
        row = {"metric": metric, "value": value, "signature": score.signatures.get(metric)}
        rows.append({column: (shared | row)[column] for column in COLUMNS})
    return rows


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
