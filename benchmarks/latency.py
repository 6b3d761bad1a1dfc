"""How fast: tied, untied, pruned and dropped variants, side by side in one process.

    python benchmarks/latency.py [MODEL …] [--rounds 15] [--ratio third]

Every variant runs the same batch of the test split, in turn, so that a busy machine slows all
alike; results/benchmarks/latency.csv gets the medians, with the machine's name. Needs the patches
of notebook 4, which `make repro-from-scratch` makes.
"""

import argparse
import copy
import time

import pandas as pd
import torch
from torch import nn

from ffmerge.catalogue import describe_method
from ffmerge.checkpoints import find_shared_modules, load
from ffmerge.costs import count_flops
from ffmerge.patches import apply_patch, count_parameters
from study.config import find_root, load_params
from study.hardware import find_device
from study.machine import describe_machine
from study.patches import find_patch
from study.tasks import load_task, make_batches

METHODS = ("permute", "refit", "drop", "ff_drop", "neurons_obs_refit", "neurons_obs_budget")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", help="names in params.yaml; else all of `run`")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--ratio", default="third")
    args = parser.parse_args()
    root, params = find_root(), load_params()
    torch.set_num_threads(params.threads)
    rows = []
    for model in args.models or params.run:
        rows += measure(model, args.ratio, args.rounds)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    path = root / "results" / "benchmarks" / "latency.csv"
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")


def measure(model: str, ratio: str, rounds: int) -> list[dict]:
    """Median seconds of a forward pass of every variant of a model, in interleaved rounds."""
    root, params = find_root(), load_params()
    entry, task = params.model(model), load_task(model, params, root)
    base = load(root / f"models/{model}/base", attn_implementation=entry.attention)
    base = base.to(find_device())
    batch = next(make_batches(task, "test", entry.batch_size))
    batch = {key: value.to(base.device) for key, value in batch.items()}
    candidates: dict[str, nn.Module] = {"uncompressed": base}
    for variant in params.variants_of(model):
        recipe = params.recipe(variant)
        if recipe.method not in METHODS or recipe.ratio != ratio or recipe.random_window:
            continue
        if recipe.anchor != "first":
            continue
        label = describe_method(recipe.method).look["label"]
        candidates[label] = apply_patch(base, find_patch(model, variant, recipe.method))
        if recipe.method == "permute":
            candidates[f"{label}, untied"] = untie(candidates[label])
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for n in range(rounds + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            with torch.no_grad():
                candidate(**batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if n:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    median = {name: pd.Series(values).median() for name, values in times.items()}
    flops = {name: count_flops(candidate, batch) for name, candidate in candidates.items()}
    tokens = sum(v.numel() for k, v in batch.items() if k == "attention_mask") or None
    return [
        {
            "model": model,
            "variant": name,
            "ratio": ratio,
            "parameters": count_parameters(candidate),
            "flops": flops[name],
            "flops_ratio": flops[name] / flops["uncompressed"],
            "seconds": median[name],
            "time_ratio": median[name] / median["uncompressed"],
            "tokens_per_second": tokens / median[name] if tokens else None,
            "rounds": rounds,
            "threads": params.threads,
            "hardware": describe_machine(),
        }
        for name, candidate in candidates.items()
    ]


def untie(model: nn.Module) -> nn.Module:
    """The same model with a copy of its own for every place of a shared module."""
    model = copy.deepcopy(model)
    for _, *names in find_shared_modules(model):
        for name in names:
            model.set_submodule(name, copy.deepcopy(model.get_submodule(name)), strict=True)
    return model


if __name__ == "__main__":
    main()
