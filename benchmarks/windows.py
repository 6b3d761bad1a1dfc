"""How long all windows take to score: every candidate whole, and from its first changed layer on.

    python benchmarks/windows.py [MODEL …]

Takes turns, candidate by candidate, so that other work on the machine slows both alike; both scores
must be equal. The least that is possible is the share of layers that lie at or above a window's
start; those of a decoder behind an encoder all do, as they read what that puts out. Making the
candidate is not counted; it takes the same either way.
results/benchmarks/windows.csv gets the models that were asked for, and keeps the others.
"""

import sys
import time

import pandas as pd
import torch

from ffmerge.checkpoints import load
from ffmerge.merging import list_window_plans, merge_groups
from ffmerge.patches import Plan, apply_patch
from ffmerge.reuse import Reuse
from study.config import find_root, load_params
from study.machine import describe_machine
from study.tasks import load_task, make_batches
from study.upkeep import update_table

COLUMNS = [
    "model",
    "ratio",
    "candidates",
    "whole_s",
    "reused_s",
    "share",
    "layers_left",
    "hardware",
]


def main(models: list[str]) -> None:
    """Time the windows of every model at every ratio."""
    root, params = find_root(), load_params()
    torch.set_num_threads(params.threads)
    rows = []
    for model in models or params.run:
        entry, task = params.model(model), load_task(model, params, root)
        base = load(root / f"models/{model}/base", attn_implementation=entry.attention)
        batches = list(
            make_batches(task, "validation", entry.batch_size, entry.validation_examples)
        )

        def evaluate(candidate, task=task, batches=batches):
            return task.evaluate(candidate, batches).value

        reuse = Reuse(base, evaluate)
        for ratio, count in entry.removed.items():
            plans = list_window_plans(entry.layers, count)
            whole = reused = 0.0
            for plan in plans:
                candidate = apply_patch(base, merge_groups(base, plan, {}))
                start = time.perf_counter()
                score = evaluate(candidate)
                middle = time.perf_counter()
                assert reuse(candidate) == score, (model, str(plan))
                whole += middle - start
                reused += time.perf_counter() - middle
            left = [count_left(plan, entry.layers) for plan in plans]
            row = {"model": model, "ratio": ratio, "candidates": len(plans)}
            row |= {"whole_s": whole, "reused_s": reused, "share": reused / whole}
            rows.append(row | {"layers_left": sum(left) / len(left)})
            print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
    table = pd.DataFrame(rows).assign(hardware=describe_machine())
    path = root / "results/benchmarks/windows.csv"
    update_table(path, table, ["model"])


def count_left(plan: Plan, depths: dict[str, int]) -> float:
    """The share of layers that a candidate must run: only its first stack is shortened."""
    first = next(iter(depths))
    return 1 - plan.groups[first][0].layers[0] / sum(depths.values())


if __name__ == "__main__":
    main(sys.argv[1:])
