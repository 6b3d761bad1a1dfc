"""One candidate scored on the test split: in one process, or every batch by one of several.

    python -m torch.distributed.run --nproc_per_node 2 -m study.scoring SPEC.json

The notebook calls `score_candidate`, which runs this line if the variant's tuning has `processes`.
"""

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import distributed
from transformers import PreTrainedModel

from ffmerge.checkpoints import load
from ffmerge.files import read_json, remove, write_json
from ffmerge.patches import apply_patch
from study import config
from study.hardware import find_device, resolve_precision
from study.metrics import Metric
from study.patches import find_patch
from study.places import find_input, make_output
from study.processes import run_processes, take_part
from study.quantization import add_adapters, load_int8, load_nf4
from study.tasks import Score, load_task, score_readings, score_test

WORKER = ("-m", "study.scoring")
SCORES = "scores.json"
PATIENCE = timedelta(days=1)  # for the process that scores one batch more than another
Part = Literal["test", "own", "readings"]


def score_candidate(
    candidate: PreTrainedModel,
    part: Part,
    model: str,
    variant: str,
    seed: int | None = None,
    bits: str | None = None,
) -> list[Score]:
    """What a candidate scores on one part of its test data.

    Args:
        candidate: as `load_candidate` gives it, which each of several processes calls again.
        part: "test" of the task that it is tuned for, "own" of the base's own, or the "readings".
        model, variant: their names.
        seed, bits: as in `load_candidate`.

    Returns:
        One score; of the readings one for each.

    Raises:
        ValueError, RuntimeError: as `run_processes`.

    Invariant: of several processes the same, bit for bit, as of one on the same hardware.
    """
    params = config.load_params()
    entry = params.model(model)
    processes = params.training(model, variant).processes or 1
    if processes == 1 or (part == "readings" and not entry.readings):
        return _score(candidate, part, model)
    for reading in entry.readings:  # data that is not there yet is written once
        load_task(model, params, config.find_root(), reading=reading)
    folder = make_output(f"models/{model}/trainer/{variant}-scores")
    remove(folder)  # what a killed one has left
    spec = {"part": part, "model": model, "variant": variant, "seed": seed, "bits": bits}
    try:
        run_processes(WORKER, processes, spec | {"folder": str(folder.resolve())}, folder)
        return [_read(score) for score in read_json(folder / SCORES)]
    finally:
        remove(folder)


def load_candidate(
    model: str, variant: str, seed: int | None = None, bits: str | None = None, rank: int = 0
) -> PreTrainedModel:
    """A variant of a model in one of the states that results.csv has rows of.

    Args:
        model, variant: their names.
        seed: of its tuning; None for untuned.
        bits: "int8" or "nf4", of the base or a tuned model; None for the precision that it is
            tuned in, where adapters stand beside weights in 4 bits.
        rank: of this process among several.

    Raises:
        ValueError: bits without a seed of what is not the base.
    """
    params = config.load_params()
    entry, training, method = (
        params.model(model),
        params.training(model, variant),
        params.recipe(variant).method,
    )
    options = {"attn_implementation": entry.attention}
    if bits and seed is None and method != "base":
        raise ValueError(f"seed is None with {bits}; valid is the seed of a tuning of {variant}")
    base = find_input(f"models/{model}/base", "1_base")
    tuned = base
    if seed is not None:
        tuned = find_input(f"models/{model}/tuned/{variant}/{seed}", "5_finetune")
    if bits:
        low = {"int8": load_int8, "nf4": partial(load_nf4, compute=torch.float32)}
        return low[bits](tuned, **options)
    if seed is not None and not training.adapters:
        return load(tuned, **options).to(find_device())
    untuned = apply_patch(load(base, **options), find_patch(model, variant, method))
    if seed is None:
        return untuned.to(find_device())
    options["compute"] = getattr(torch, resolve_precision(training.precision))
    scratch = make_output(f"models/{model}/trainer/{variant}-frozen-{rank}")
    return add_adapters(untuned, tuned, scratch, **options).eval()


def _score(candidate: PreTrainedModel, part: Part, model: str) -> list[Score]:
    params, root = config.load_params(), config.find_root()
    entry = params.model(model)
    if part == "readings":
        return score_readings(model, params, root, candidate)
    is_test = part == "test"
    task = load_task(model, params, root, downstream=is_test)
    return [score_test(task, entry.recovery if is_test else entry, candidate)]


def run_process(spec: dict, rank: int) -> None:
    """Take part in the scoring that `score_candidate` has described."""
    names = {name: spec[name] for name in ("model", "variant", "seed", "bits")}
    torch.set_num_threads(config.load_params().threads)
    candidate = load_candidate(**names, rank=rank)  # each alone: in a group only one would save
    backend = "nccl" if find_device() == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        scores = _score(candidate, spec["part"], spec["model"])
    finally:
        distributed.destroy_process_group()
    if rank == 0:
        write_json([_write(score) for score in scores], Path(spec["folder"]) / SCORES)


def _write(score: Score) -> dict:
    return vars(score) | {"values": [[vars(m), value] for m, value in score.values.items()]}


def _read(content: dict) -> Score:
    values = {Metric(**metric): value for metric, value in content["values"]}
    return Score(**content | {"values": values})


if __name__ == "__main__":
    take_part(run_process)
