"""Two trainings of one base, on two machines: does what the windows say depend on which?

    python benchmarks/bases.py MODEL OTHER

OTHER is a copy of results/models/MODEL that another machine made from nothing, its base included.
results/benchmarks/bases.csv gets a row for each method and ratio that both have: the best
candidate's validation score before tuning in % of its own base's, and which layers it takes; rows
of other models are kept.
"""

import argparse
from pathlib import Path

import pandas as pd

from study.config import find_root
from study.upkeep import update_table


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name in params.yaml")
    parser.add_argument("other", type=Path, help="the other machine's results of it")
    args = parser.parse_args()
    root = find_root()
    folders = root / f"results/models/{args.model}", args.other
    here, there = (pd.DataFrame(read(folder)) for folder in folders)
    table = here.merge(there, on=["method", "ratio"], suffixes=("", " (other)"))
    table.insert(0, "model", args.model)
    print(table.to_string(index=False))
    path = root / "results/benchmarks/bases.csv"
    update_table(path, table, ["model"], digits=5)


def read(folder: Path) -> list[dict]:
    """The best candidate of every method and ratio of a model, and where its base was trained."""
    told = pd.read_csv(folder / "base.csv").iloc[-1]
    rows = []
    for file in sorted((folder / "windows").glob("*.csv")):
        table = pd.read_csv(file)
        (base,) = table[table.method == "base"].value
        for (method, ratio), part in table.dropna(subset="ratio").groupby(["method", "ratio"]):
            higher = part.direction.iloc[0] == "higher"
            best = part.loc[part.value.idxmax() if higher else part.value.idxmin()]
            kept = 100 * (best.value / base if higher else base / best.value)
            row = {"method": method, "ratio": ratio, "base": base, "kept (%)": kept}
            rows.append(row | {"layers": best.layers, "hardware": told.hardware})
    return rows


if __name__ == "__main__":
    main()
