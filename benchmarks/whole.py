"""Whole stages of one of the paper's models, at full size: nothing is told from a sample.

    python benchmarks/whole.py MODEL [--stages features permutations surgeon] [--tokens 10000]

Weights and tokens are random, sizes are those of params.yaml: the features of all FF sublayers, all
pairs that windows of the first ratio need, aligned; neurons pruned in all sublayers by Optimal
Brain Surgeon and W_out refit, as notebooks 2 to 4 do. Each stage is a process of its own; seconds
are by the clock, peaks those of the process in main memory and of its tensors on the GPU.
results/benchmarks/whole.csv gets one row for each and keeps all others. Linux.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import pandas as pd
import torch

from ffmerge.activations import Batch
from ffmerge.aligning import align_pairs
from ffmerge.groups import Anchor, list_pairs
from ffmerge.merging import list_window_plans
from ffmerge.methods import Evidence, find_method
from ffmerge.moments import find_tokens
from ffmerge.recording import open_features, record_features
from study.apart import call_apart
from study.config import find_root, load_params
from study.hardware import find_device
from study.machine import describe_machine
from study.peaks import read_main_peak, read_peak
from study.places import make_scratch
from study.rehearsal.measures import make_random
from study.rehearsal.models import RandomTask
from study.rehearsal.parts import Rehearsal
from study.upkeep import update_table

HOURS = 5 * 3600


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name in params.yaml")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--tokens", type=int, default=10_000, help="of the features")
    args = parser.parse_args()
    path = find_root() / "results/benchmarks/whole.csv"
    with TemporaryDirectory(dir=make_scratch()) as folder:
        for stage in args.stages:
            told = args.model, stage, args.tokens, Path(folder) / "features.safetensors"
            row = call_apart(measure, *told, seconds=HOURS, preload="study.rehearsal.measures")
            print(row, flush=True)
            update_table(path, pd.DataFrame([row]), ["model", "stage", "hardware"])


def measure(name: str, stage: str, tokens: int, path: Path) -> dict:
    """One stage of one model."""
    params = load_params()
    torch.set_num_threads(params.threads)
    torch.manual_seed(0)
    r = Rehearsal(params, find_root(), name)
    start = time.perf_counter()
    what = STAGES[stage](r, tokens, path)
    seconds = time.perf_counter() - start
    on_gpu = read_peak() if find_device() == "cuda" else 0
    return {
        "model": name,
        "stage": stage,
        "what": what,
        "d_ff": r.widths[1],
        "seconds": seconds,
        "peak_gb": read_main_peak() / 1e9,
        "peak_gpu_gb": on_gpu / 1e9,
        "hardware": describe_machine(),
    }


def make_base(r: Rehearsal):
    """The model with random weights, where it would run."""
    model = make_random(r)
    with torch.no_grad():  # every number drawn, or neurons of all layers would be the same
        for weight in (p for p in model.parameters() if p.ndim > 1):
            weight.normal_(0, 0.02)
    return model


def draw_batches(r: Rehearsal) -> Iterator[Batch]:
    """Random batches of the entry's size, without end."""
    task, entry = RandomTask(r.config, r.entry.task), r.entry
    while True:
        yield task.make_batch(entry.batch_size, r.length(entry))


def make_features(r: Rehearsal, tokens: int, path: Path) -> str:
    """The features of all FF sublayers."""
    dtype = getattr(torch, r.entry.features.precision or "float32")
    record_features(make_base(r), draw_batches(r), path, tokens, dtype)
    return f"{tokens} tokens, {path.stat().st_size / 1e9:.1f} GB"


def make_permutations(r: Rehearsal, tokens: int, path: Path) -> str:
    """All pairs that windows of the first ratio need, whatever their anchor."""
    plans = list_window_plans(r.entry.layers, next(iter(r.entry.removed.values())))
    groups = [g for plan in plans for found in plan.groups.values() for g in found]
    anchored = (g.anchored(anchor) for g in groups for anchor in get_args(Anchor))
    pairs = list_pairs(anchored)
    found = list(align_pairs(open_features(path), pairs, device=find_device()))
    before, after = (sum(getattr(p, k) for p in found) / len(found) for k in ("before", "after"))
    return f"{len(found)} pairs, mean correlation {before:.3f} before, {after:.3f} after"


def make_pruned(r: Rehearsal, tokens: int, path: Path) -> str:
    """A third pruned by Optimal Brain Surgeon: moments, order, W_out."""
    base, surgeon = make_base(r), find_method("neurons_obs_refit")
    evidence = Evidence(calibration=lambda: draw_batches(r))
    (plan,) = surgeon.list_plans(base, next(iter(r.entry.removed.values())), evidence)
    patch = surgeon.make(base, plan, evidence)
    return f"{len(patch.tensors)} tensors, from {find_tokens(base)} tokens"


STAGES = {"features": make_features, "permutations": make_permutations, "surgeon": make_pruned}


if __name__ == "__main__":
    main()
