"""One model's study from nothing on another machine, its base included: do the verdicts hold?

    python benchmarks/elsewhere.py MODEL OTHER

OTHER is a folder whose results/models/MODEL another machine made. results/benchmarks/elsewhere.csv
gets a row for every variant, untuned and tuned: scores on the test split, their spread over seeds,
and what is kept of each machine's own base; elsewhere-claims.csv every claim of the paper and its
reviewers with both statistics and verdicts. Rows of other models are kept.
"""

import argparse
from pathlib import Path

import pandas as pd

from study.config import Params, find_root, load_params
from study.report.choices import select_faithful
from study.report.claims import table_claims
from study.report.doubts import table_doubts
from study.report.paper import read_paper
from study.report.results import collect_results, find_reference, read_metric, select_metric
from study.upkeep import update_table

KEYS = ["variant", "phase"]


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name in params.yaml")
    parser.add_argument("other", type=Path, help="a folder with the other machine's results/")
    args = parser.parse_args()
    root, params = find_root(), load_params()
    params = params.model_copy(update={"run": [args.model]})
    here, there = (collect_results([folder], params) for folder in (root, args.other))
    scores = [measure(results, args.model, params) for results in (here, there)]
    paper = read_paper(root / "results/paper.csv")
    claims = [
        judge(results, paper, params, folder)
        for results, folder in ((here, root), (there, args.other))
    ]
    for name, (ours, theirs), keys in (
        ("elsewhere", scores, KEYS),
        ("elsewhere-claims", claims, ["Claim", "number"]),
    ):
        table = ours.merge(theirs, on=keys, how="left", suffixes=("", " (other)"))
        table = table.drop(columns="number", errors="ignore")
        table.insert(0, "model", args.model)
        table["hardware (other)"] = ", ".join(there.hardware.dropna().unique())
        print(table.to_string(index=False))
        update_table(root / f"results/benchmarks/{name}.csv", table, ["model"], digits=5)


def measure(results: pd.DataFrame, model: str, params: Params) -> pd.DataFrame:
    """Every variant of a model, untuned and tuned: mean, spread over seeds, what is kept."""
    rows = select_metric(results, model)
    metric, reference = read_metric(rows), find_reference(rows, model, params)
    base = rows[rows.phase == "base"].value.iloc[0]
    table = rows.groupby(KEYS, sort=False).agg(
        layers=("layers", "first"),
        n=("value", "size"),
        mean=("value", "mean"),
        spread=("value", "std"),
    )
    whole = [reference.value if phase == "tuned" else base for _, phase in table.index]
    kept = [metric.retained(value, of) for value, of in zip(table["mean"], whole, strict=True)]
    return table.assign(**{"kept (%)": kept}).reset_index()


def judge(results: pd.DataFrame, paper: pd.DataFrame, params: Params, folder: Path) -> pd.DataFrame:
    """The claims of the paper and its reviewers, and which of a claim's several tests each is."""
    faithful = table_claims(select_faithful(results, params), paper, params, [folder])
    doubts = table_doubts(results, paper, params, [folder])
    table = pd.concat([faithful, doubts], ignore_index=True)
    table["number"] = table.groupby("Claim").cumcount()
    return table.drop(columns="Model")


if __name__ == "__main__":
    main()
