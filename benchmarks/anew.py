"""Is sharing from scratch ahead of merging, or is training anew in another precision? The whole.

    python benchmarks/anew.py vit-glyphs --seeds 0 1 2

The uncompressed model, drawn anew and trained as `scratch-third` is: for the steps of the base and
of its recovery together, in the precision of recovery. results/benchmarks/anew.csv has a row for
each seed: what it scores on the test split, beside the base.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from transformers import set_seed

from ffmerge.checkpoints import load
from ffmerge.methods import scratch
from ffmerge.patches import Plan, apply_patch
from study.config import find_root, load_params
from study.finetuning import finetune
from study.tasks import load_task, make_batches, score_test
from study.upkeep import update_table


def main() -> None:
    """Train, score, print, write: a seed at a time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name in params.yaml whose base is trained here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    for seed in args.seeds:
        row = pd.DataFrame([train(args.model, seed)])
        print(row.to_string(index=False))
        path = find_root() / "results/benchmarks/anew.csv"
        update_table(path, row, ["model", "seed"], digits=6)


def train(model: str, seed: int) -> dict:
    """One seed: the same weights to begin with, the data in its own order, the best state kept."""
    root, params = find_root(), load_params()
    entry, task = params.model(model), load_task(model, params, root)
    if not entry.trains_anew:
        raise SystemExit(f"MODEL is {model}, which is not trained here in what is measured")
    torch.set_num_threads(params.threads)
    base = load(root / f"models/{model}/base", attn_implementation=entry.attention)
    whole = apply_patch(base, scratch.make(base, Plan(), None))
    changes = params.recipe("scratch-third").finetune
    training = entry.whole_training.model_copy(update=changes)
    validation = list(make_batches(task, "validation", entry.batch_size, entry.validation_examples))
    set_seed(seed)
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        curve = finetune(whole, task, training, validation, seed, Path(folder))
    scores = {
        name: score_test(task, entry, each).value
        for name, each in (("base", base), ("drawn anew", whole))
    }
    return {
        "model": model,
        "seed": seed,
        "steps": training.steps,
        "metric": task.metric.name,
        **scores,
        "minutes": (time.perf_counter() - start) / 60,
        "trained in": curve.trained_in.iloc[0],
        "hardware": curve.hardware.iloc[0],
    }


if __name__ == "__main__":
    main()
