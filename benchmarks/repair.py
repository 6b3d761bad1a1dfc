"""Does least squares repair a real model's merge? At the windows that did best without it.

    python benchmarks/repair.py smollm2 --windows 3 [--also addresses]

Of the windows of a third, those that permute kept most of on validation data; each is refit, by
its own text or by that and a reading's in turn, and the best of these scored on the test split and
on the readings. All windows, as notebook 4 tries them, take hours on such a model.
results/benchmarks/repair.csv has a row for each score.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from recovery import mix_batches
from tqdm import tqdm

from ffmerge.checkpoints import load
from ffmerge.methods import refit
from ffmerge.patches import apply_patch
from study.config import find_root, load_params
from study.evidence import load_evidence
from study.tasks import Score, load_task, make_batches, score_readings, score_test
from study.upkeep import update_table

RATIO = "third"


def main() -> None:
    """Refit, score, print, write: a window at a time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name in params.yaml")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--also", help="a reading whose text is fitted, too")
    args = parser.parse_args()
    path, keys = find_root() / "results/benchmarks/repair.csv", ["model", "layers", "method"]
    for rows in measure(args.model, args.windows, args.also):
        print(rows.to_string(index=False))
        update_table(path, rows, [*keys, "fitted", "split", "metric"], digits=6)


def measure(model: str, windows: int, also: str | None) -> Iterator[pd.DataFrame]:
    """Validation scores of one window after the other; then the test scores of the best."""
    root, params = find_root(), load_params()
    entry, task = params.model(model), load_task(model, params, root)
    torch.set_num_threads(params.threads)
    base = load(root / f"models/{model}/base", attn_implementation=entry.attention)
    validation = list(make_batches(task, "validation", entry.batch_size, entry.validation_examples))
    evidence, fitted = load_evidence(model, "refit", task, entry.batch_size), "own"
    if also:
        tasks = task, load_task(model, params, root, reading=also)
        give = partial(mix_batches, tasks, entry.batch_size)
        evidence, fitted = replace(evidence, calibration=give), f"own and {also}"
    plans = {str(plan): plan for plan in refit.list_plans(base, entry.removed[RATIO], evidence)}
    tried = pd.concat(
        pd.read_csv(root / f"results/models/{model}/windows/{method}.csv")
        for method in ("vanilla", "permute")
    )
    tried = tried[(tried.ratio == RATIO) & tried.layers.isin(plans)]
    sign = -1 if task.metric.higher_is_better else 1
    order = tried[tried.method == "permute"].sort_values("value", key=lambda v: sign * v)
    best = None
    for layers in tqdm(order.layers[:windows], unit="window"):
        small = apply_patch(base, refit.make(base, plans[layers], evidence))
        score = task.evaluate(small, validation)
        if best is None or sign * score.value < sign * best[1].value:
            best = layers, score, small
        known = tried[tried.layers == layers][["layers", "method", "metric", "value"]]
        rows = pd.concat([known.assign(fitted="nothing"), tabulate(layers, fitted, [score])])
        yield rows[rows.metric == task.metric.name].assign(model=model, split="validation")
    layers, _, small = best
    scores = [score_test(task, entry, small), *score_readings(model, params, root, small)]
    yield tabulate(layers, fitted, scores).assign(model=model, split="test")


def tabulate(layers: str, fitted: str, scores: list[Score]) -> pd.DataFrame:
    """A row for every metric: the window, the method, its texts, what was measured."""
    rows = [(m.name, value) for score in scores for m, value in score.values.items()]
    table = pd.DataFrame(rows, columns=["metric", "value"])
    return table.assign(layers=layers, method="refit", fitted=fitted)


if __name__ == "__main__":
    main()
