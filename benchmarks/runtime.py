"""What tying and pruning buy at run time: memory, batches, throughput, bytes that travel.

    python benchmarks/runtime.py [MODEL …] [--rounds 7]

For every model of `run`, or one of the paper's by name (where its base is not here, with random
weights): the uncompressed one, a third merged and tied (`permute-third`), the same weights untied,
and as many neurons pruned everywhere (the plan of `obs-third`; only shapes matter here). Batches
are random, of the shapes that the entry has. Bytes of weights, gradients and AdamW's state are
counted from tensors after a real step. A peak is the bytes of the tensors that are held before a
run and by how much the process then grows, each in a process of its own in which memory that is
freed is given back at once. The budget is what the uncompressed model takes at its entry's batch,
and a thousandth, as pages of memory come and go; the largest batch in it follows from two smaller
ones, and is then tried. Throughput: medians of
interleaved rounds, in processor time (on a GPU, by the clock), and its ratio the median of the
rounds' own, as other work on the machine slows all alike. results/benchmarks/runtime.csv and .png
get the models that were asked for, and keep the others. Linux.
"""

import argparse
import copy
import math
import os
from collections.abc import Callable
from pathlib import Path

import accelerate
import accelerate.hooks
import pandas as pd
import torch
from torch import nn
from torch.optim import AdamW

from ffmerge.checkpoints import load
from ffmerge.memory import count_bytes
from ffmerge.methods import Evidence, find_method
from ffmerge.patches import apply_patch, apply_plan, count_parameters
from ffmerge.saving.exporting import untie
from study.apart import call_apart
from study.config import find_root, load_params
from study.hardware import find_device
from study.machine import describe_machine
from study.offloading import count_moved, count_resident
from study.patches import find_patch
from study.peaks import read_peak, reset_peak
from study.rehearsal.measures import make_random, read_clock
from study.rehearsal.models import RandomTask
from study.rehearsal.parts import Rehearsal
from study.report.runtime import plot_runtime
from study.report.style import use_style
from study.upkeep import update_table

VARIANTS = ("uncompressed", "permute", "permute, untied", "neurons: OBS")
LIMIT = 900  # seconds of one process
PAGES = 1e-3  # of a peak, by which it differs from one process to the next


def main() -> None:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", help="names in params.yaml; else all of `run`")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the processes: what is freed is given back
    path = find_root() / "results" / "benchmarks" / "runtime.csv"
    for model in args.models or load_params().run:
        table = pd.DataFrame(measure(model, args.rounds))
        table["hardware"] = describe_machine()
        print(table.to_string(index=False), flush=True)
        update_table(path, table, ["model"], digits=10)
        draw(path)


def draw(path: Path) -> None:
    """The picture beside the table."""
    use_style()
    plot_runtime(pd.read_csv(path)).savefig(path.with_suffix(".png"))


def measure(model: str, rounds: int) -> list[dict]:
    """One row for each variant of a model."""
    rows, budget = {}, None
    for variant in VARIANTS:
        rows[variant] = {"model": model, "variant": variant}
        rows[variant] |= apart(measure_tuning, model, variant)
        rows[variant] |= apart(measure_inference, model, variant, budget)
        budget = rows[variant]["budget_bytes"]
    largest = {variant: row["largest_batch"] for variant, row in rows.items()}
    for variant, speed in apart(measure_throughput, model, largest, rounds).items():
        rows[variant] |= speed
    return list(rows.values())


def apart(function, *args) -> dict:
    """A measurement in a process of its own."""
    return call_apart(function, *args, seconds=LIMIT, preload="study.rehearsal.measures")


def make(r: Rehearsal, variant: str) -> nn.Module:
    """A variant of a model, on its own: nothing else is left in memory."""
    folder = r.root / f"models/{r.name}/base"
    if folder.exists():
        base = load(folder, attn_implementation=r.entry.attention)
    else:
        base = make_random(r)
    return _vary(r, base, variant).to(find_device())


def _vary(r: Rehearsal, base: nn.Module, variant: str) -> nn.Module:
    if variant == "uncompressed":
        return copy.deepcopy(base)
    if variant == "neurons: OBS":
        surgeon = find_method("neurons_obs_refit")
        (plan,) = surgeon.list_plans(base, r.entry.removed["third"], Evidence())
        return apply_plan(base, plan)
    if (r.root / f"models/{r.name}/patches/permute").exists():
        tied = apply_patch(base, find_patch(r.name, "permute-third", "permute"))
    else:
        tied = apply_plan(base, r.plan)
    return untie(tied) if variant.endswith("untied") else tied


def put(batch: dict, model: nn.Module) -> dict:
    """A batch where the model is."""
    return {key: value.to(model.device) for key, value in batch.items()}


def start(model: str) -> tuple[Rehearsal, RandomTask, int]:
    """The entry, its random data, and the length of an example."""
    params = load_params()
    torch.set_num_threads(params.threads)
    torch.manual_seed(0)
    r = Rehearsal(params, find_root(), model)
    return r, RandomTask(r.config, r.entry.task), r.length(r.entry)


def find_rise(run: Callable[[], object]) -> int:
    """Bytes by which this process grows at the most while something runs."""
    before = reset_peak()
    run()
    return read_peak() - before


def infer(model: nn.Module, task: RandomTask, rows: int, length: int) -> None:
    """One forward pass."""
    batch = put(task.make_batch(rows, length), model)
    labels = batch.pop("labels")
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = labels
    with torch.no_grad():
        model(**batch)


def measure_tuning(name: str, variant: str) -> dict:
    """Exact bytes of weights, gradients and optimizer state, and the peak of a tuning step."""
    r, task, length = start(name)
    model, batch = make(r, variant).train(), r.entry.finetune.batch_size
    optimizer = AdamW(model.parameters(), 1e-5)

    def step() -> None:
        model(**put(task.make_batch(batch, length), model)).loss.backward()
        optimizer.step()

    step()  # makes the optimizer's state
    optimizer.zero_grad()
    rise = find_rise(step)
    weights = count_bytes(model.parameters())
    gradients = count_bytes(p.grad for p in model.parameters() if p.grad is not None)
    adam = count_bytes(t for state in optimizer.state.values() for t in state.values())
    return {
        "parameters": count_parameters(model),
        "weight_bytes": weights,
        "gradient_bytes": gradients,
        "optimizer_bytes": adam,
        "state_bytes": weights + gradients + adam,
        "tuning_batch": batch,
        "tuning_peak_bytes": weights + adam + rise,
    }


def measure_inference(name: str, variant: str, budget: int | None) -> dict:
    """Peaks of a forward pass, the largest batch in the budget, and bytes that travel."""
    r, task, length = start(name)
    model, rows = make(r, variant).eval(), r.entry.batch_size
    weights = count_bytes(model.parameters())

    def find_peak(n: int) -> int:
        return weights + find_rise(lambda: infer(model, task, n, length))

    half = max(1, rows // 2)
    infer(model, task, half, length)  # the first run makes room
    least, most = find_peak(half), find_peak(rows)
    each, largest, found = (most - least) / (rows - half), rows, most
    if budget is not None:
        largest += math.floor((budget - most) / each)
        while (found := find_peak(largest)) > budget:
            largest -= math.ceil((found - budget) / each)
    example = task.make_batch(1, length if r.entry.task == "images" else 8)  # bytes are the same
    if not model.config.is_encoder_decoder:
        del example["labels"]
    return {
        "length": length,
        "batch": rows,
        "inference_peak_bytes": most,
        "budget_bytes": budget or round(most * (1 + PAGES)),
        "largest_batch": largest,
        "peak_at_largest_bytes": found,
        "moved_bytes": count_moved(model, example),
        "resident_bytes": count_resident(model),
        "moved_by_accelerate_bytes": count_accelerate(model.cpu(), example),
    }


def count_accelerate(model: nn.Module, batch: dict) -> int:
    """Bytes that accelerate's `cpu_offload` brings in for a forward pass."""
    moved, bring = 0, accelerate.hooks.set_module_tensor_to_device

    def count(module, name, device, value=None, tied_params_map=None, **kwargs):
        nonlocal moved
        is_there = value is not None and device in (tied_params_map or {}).get(value.data_ptr(), ())
        moved += 0 if value is None or is_there else value.numel() * value.element_size()
        return bring(module, name, device, value=value, tied_params_map=tied_params_map, **kwargs)

    names = {"remove_duplicate": False}  # accelerate looks shared weights up by every name
    weights = dict(model.named_parameters(**names)) | dict(model.named_buffers(**names))
    weights = {name: tensor.detach() for name, tensor in weights.items()}
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"), state_dict=weights)
    accelerate.hooks.set_module_tensor_to_device = count
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        accelerate.hooks.set_module_tensor_to_device = bring
    return moved


def measure_throughput(name: str, largest: dict[str, int], rounds: int) -> dict[str, dict]:
    """Tokens per second of each variant at its largest batch, in interleaved rounds."""
    r, task, length = start(name)
    models = {variant: make(r, variant).eval() for variant in largest}
    speeds: dict[str, list[float]] = {variant: [] for variant in largest}
    for n in range(rounds + 1):
        for variant, model in models.items():
            begin = read_clock()
            infer(model, task, largest[variant], length)
            if n:  # the first round warms up
                speeds[variant].append(largest[variant] * length / (read_clock() - begin))
    table = pd.DataFrame(speeds)
    ratios = table.div(table.uncompressed, axis=0).median()
    names = {"tokens_per_second": table.median(), "throughput_ratio": ratios}
    return {v: {key: float(found[v]) for key, found in names.items()} for v in largest}


if __name__ == "__main__":
    main()
