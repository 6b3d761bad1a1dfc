"""The paper's own numbers, beside which ours are shown."""

from pathlib import Path

import pandas as pd

from study.metrics import Metric


def read_paper(path: Path) -> pd.DataFrame:
    """Read paper.csv.

    Returns:
        Its columns (those of results.csv, and the number of the paper's table), whether a row is
        in int8, and `printed`: the value as the paper prints it.
    """
    rows = pd.read_csv(path, dtype={"value": str, "variant": object, "layers": object})
    values = rows.value.astype(float)
    return rows.assign(int8=rows.precision == "int8", printed=rows.value, value=values)


def select_paper(paper: pd.DataFrame, model: str | None, table: int) -> pd.DataFrame:
    """What one table of the paper says of one of its models; no rows if it says nothing.

    Args:
        paper: what `read_paper` returned.
        model: the paper's name of it.
        table: its number in the paper.
    """
    return paper[(paper.model == model) & (paper.table == table)]


def print_theirs(rows: pd.DataFrame, key: str, column: str = "variant") -> str:
    """The paper's number of one variant, as it prints it; a dash without one.

    Args:
        rows: what `select_paper` returned.
        key: the variant.
        column: "metric", where the key is one.
    """
    found = rows[rows[column] == key].printed
    return found.iloc[0] if len(found) else "–"


def trace_paper(paper: pd.DataFrame, model: str | None) -> tuple[pd.DataFrame, float] | None:
    """The paper's Table 10 of one of its models, in the form of `summarise`, and its base.

    Its GPT-2 is tuned alike, the other two bases are not.

    Args:
        paper: what `read_paper` returned.
        model: the paper's name of it.

    Returns:
        The variants, and the base's score; None where Table 10 has no such model.
    """
    rows = select_paper(paper, model, 10)
    bases = rows[rows.method == "base"].value
    if bases.empty:
        return None
    table = rows.assign(mean=rows.value, std=float("nan"))
    return table, float(bases.iloc[0])


def find_loss(
    paper: pd.DataFrame, model: str | None, ratio: str, metric: Metric
) -> tuple[float, float] | None:
    """The scores of one of the paper's models, uncompressed and with permuted FFs merged.

    Args:
        paper: what `read_paper` returned.
        model: the paper's name of it.
        ratio: how much is merged.
        metric: ours; where the paper gives another one, there is nothing to compare.

    Returns:
        (uncompressed, merged), from Table 10 or else Table 4; None where neither has both.
    """
    for number in (10, 4):
        rows = select_paper(paper, model, number)
        rows = rows[rows.metric == metric.name]
        base = rows[rows.method == "base"].value
        merged = rows[(rows.method == "permute") & (rows.ratio == ratio)].value
        if len(base) and len(merged):
            return float(base.iloc[0]), float(merged.iloc[0])
    return None
