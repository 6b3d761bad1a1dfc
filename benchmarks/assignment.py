"""How fast: exact solvers of the assignment problem (Eq. 2), on real and on made-up correlations.

    pip install lapx==0.11.1  # which nothing else here needs
    python benchmarks/assignment.py [--pairs 3] [--widths 1536 3072 5120]

Real ones are of the features that notebook 2 has left in models/; made-up ones have the spectrum
of a residual stream and a quarter of neurons that correspond. Every solver must find the same
total. results/benchmarks/assignment.csv gets the seconds, with the machine's name.
"""

import argparse
import random
import time
from collections.abc import Iterator
from itertools import pairwise

import lap
import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ffmerge.alignment import correlate
from study.config import find_root, load_params
from study.machine import describe_machine

TOKENS = 10_000
SOLVERS = {
    "scipy": lambda C: linear_sum_assignment(C, maximize=True)[1],
    "lapjv": lambda C: lap.lapjv(-C, return_cost=False)[0],
    "lapjvc": lambda C: lap.lapjvc(-C, return_cost=False)[1],
    "lapjvs": lambda C: lap.lapjvs(-C, return_cost=False, jvx_like=False)[0],
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="*", default=[1536, 3072, 5120])
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, C in (*read_pairs(args.pairs), *make_pairs(args.widths)):
        rows += measure(name, C.numpy())
        print(pd.DataFrame(rows).tail(len(SOLVERS)).to_string(index=False, header=False))
    table = pd.DataFrame(rows).assign(hardware=describe_machine())
    path = find_root() / "results" / "benchmarks" / "assignment.csv"
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")


def measure(name: str, C: np.ndarray) -> list[dict]:
    """Seconds of every solver, the fastest of three; and where its permutation differs."""
    found, rows = {}, []
    for solver, solve in SOLVERS.items():
        times = []
        for _ in range(3 if len(C) < 1000 else 1):
            start = time.perf_counter()
            found[solver] = np.asarray(solve(C))
            times.append(time.perf_counter() - start)
        total, best = (C[np.arange(len(C)), found[s]].sum() for s in (solver, "scipy"))
        assert np.isclose(total, best, rtol=1e-9), (name, solver, total, best)
        differ = int((found[solver] != found["scipy"]).sum())
        row = {"correlation": name, "d_ff": len(C), "solver": solver, "seconds": min(times)}
        rows.append(row | {"mean correlation": total / len(C), "neurons elsewhere": differ})
    return rows


def read_pairs(n: int) -> Iterator[tuple[str, Tensor]]:
    """The correlations of some pairs of sublayers of every model whose features are there."""
    root, params = find_root(), load_params()
    for model in params.run:
        path = root / f"models/{model}/features.safetensors"
        if not path.exists():
            continue
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
            for a, b in random.Random(0).sample(list(pairwise(names)), n):
                if a.split(".")[0] == b.split(".")[0]:
                    x, y = (file.get_tensor(name)[:TOKENS] for name in (a, b))
                    yield f"{model}: {a}, {b}", correlate(x, y)


def make_pairs(widths: list[int]) -> Iterator[tuple[str, Tensor]]:
    """Correlations of made-up features: d_model a quarter of d_ff, a power law over directions."""
    for d_ff in widths:
        g, d = torch.Generator().manual_seed(0), d_ff // 4
        scale = torch.arange(1, d + 1) ** -0.5
        x = torch.randn(TOKENS, d, generator=g)
        y = 0.6 * x + 0.8 * torch.randn(TOKENS, d, generator=g)
        W, V = torch.randn(2, d, d_ff, generator=g)
        same = torch.randperm(d_ff, generator=g)[: d_ff // 4]
        V[:, same] = 0.8 * W[:, : d_ff // 4] + 0.6 * V[:, same]
        yield "made up", correlate(x * scale @ W, y * scale @ V)


if __name__ == "__main__":
    main()
