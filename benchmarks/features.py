"""What kind of features: of models trained here in minutes, and of two that others pretrained.

    python benchmarks/features.py [--pairs 3]

For some pairs of neighbouring FF sublayers of every model whose features notebook 2 has left in
models/: the correlation of matched neurons, what chance gives (tokens shuffled), and how uneven
features are. results/benchmarks/features.csv gets the means over pairs; what it says of models
without features there stays.
"""

import argparse
import random
from itertools import pairwise

import pandas as pd
import torch
from safetensors import safe_open
from torch import Tensor

from ffmerge.alignment import correlate, solve_assignment
from study.config import find_root, load_params

TOKENS = 10_000


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    root, params = find_root(), load_params()
    torch.set_num_threads(params.threads)
    csv, rows = root / "results/benchmarks/features.csv", {}
    if csv.exists():  # of models whose features are not here any more
        rows = {row["model"]: row for row in pd.read_csv(csv).to_dict("records")}
    for model in params.run:
        path = root / f"models/{model}/features.safetensors"
        if path.exists():
            found = pd.DataFrame(measure(path, args.pairs)).mean()
            rows[model] = {"model": model, "pairs": args.pairs} | found.to_dict()
    table = pd.DataFrame([rows[model] for model in params.run if model in rows])
    print(table.to_string(index=False))
    table.to_csv(csv, index=False, float_format="%.4g")


def measure(path, n: int) -> list[dict]:
    """One row for each of n pairs of neighbours of the first stack."""
    rows, generator = [], torch.Generator().manual_seed(0)
    with safe_open(path, "pt") as file:
        stack = sorted({name.split(".")[0] for name in file.keys()}, reverse=True)[0]
        names = [f"{stack}.{i}" for i in range(sum(k.startswith(stack) for k in file.keys()))]
        for a, b in random.Random(0).sample(list(pairwise(names)), n):
            x, y = (file.get_tensor(name)[:TOKENS] for name in (a, b))
            shuffled = y[torch.randperm(len(y), generator=generator)]
            rows.append({"aligned": match(x, y), "chance": match(x, shuffled)} | describe(x))
    return rows


def match(x: Tensor, y: Tensor) -> float:
    """The mean correlation of matched neurons."""
    C = correlate(x, y)
    return float(C[torch.arange(len(C)), solve_assignment(C)].mean())


def describe(x: Tensor) -> dict[str, float]:
    """How uneven features (n_tokens, d_ff) are, over neurons and over tokens."""
    x = x.double()
    variance = x.var(0)
    most = variance.sort(descending=True).values[: max(1, len(variance) // 100)]
    kurtosis = (x - x.mean(0)).pow(4).mean(0) / variance.square()
    return {
        "variance in the widest 1 % of neurons": float(most.sum() / variance.sum()),
        "median kurtosis": float(kurtosis.median()),  # 3 of a normal distribution
        "largest / root mean square": float(x.abs().max() / x.square().mean().sqrt()),
    }


if __name__ == "__main__":
    main()
