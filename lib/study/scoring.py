"""One candidate scored on the test split: in one process, or every batch by one of several.

    python -m torch.distributed.run --nproc_per_node 2 -m study.scoring SPEC.json

The notebook calls `score_candidate`, which runs this line if the variant's tuning has `processes`.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import distributed
from transformers import PreTrainedModel

from ffmerge.checkpoints import load
from ffmerge.files import read_json, remove, write_json
from ffmerge.patches import apply_patch
from study.config import find_root, load_params
from study.hardware import find_device, resolve_precision
from study.metrics import Metric
from study.patches import find_patch
from study.places import find_input, make_output
from study.processes import run_processes, take_part
from study.quantization import add_adapters, load_int8, load_nf4
from study.tasks import Score, load_task, score_readings, score_test

WORKER = ("-m", "study.scoring")
SCORES = "scores.json"
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
    params = load_params()
    processes = params.training(model, variant).processes or 1
    if processes == 1 or (part == "readings" and not params.model(model).readings):
        return _score(candidate, part, model)
    folder = make_output(f"models/{model}/trainer/{variant}-scores")
    spec = {"part": part, "model": model, "variant": variant, "seed": seed, "bits": bits}
    run_processes(WORKER, processes, spec | {"folder": str(folder.resolve())}, folder)
    scores = [_read(score) for score in read_json(folder / SCORES)]
    remove(folder)
    return scores


def load_candidate(
    model: str, variant: str, seed: int | None = None, bits: str | None = None, rank: int = 0
) -> PreTrainedModel:
    """A variant of a model in one of the states that results.csv has rows of.

    Args:
        model, variant: their names.
        seed: of its tuning; None for untuned.
        bits: "int8" or "nf4"; None for the precision that it is tuned in, where adapters stand
            beside weights in 4 bits.
        rank: of this process among several.
    """
    params = load_params()
    entry, training = params.model(model), params.training(model, variant)
    device, options = find_device(), {"attn_implementation": entry.attention}
    folder = find_input(f"models/{model}/base", "1_base")
    if seed is not None:
        folder = find_input(f"models/{model}/tuned/{variant}/{seed}", "5_finetune")
    if bits == "int8":
        return load_int8(folder, **options)
    if bits == "nf4":
        return load_nf4(folder, compute=torch.float32, **options)
    if seed is not None and not training.adapters:
        return load(folder, **options).to(device)
    base = load(find_input(f"models/{model}/base", "1_base"), **options).to(device)
    untuned = apply_patch(base, find_patch(model, variant, params.recipe(variant).method))
    if seed is None:
        return untuned
    options["compute"] = getattr(torch, resolve_precision(training.precision))
    scratch = make_output(f"models/{model}/trainer/{variant}-frozen-{rank}")
    return add_adapters(untuned, folder, scratch, **options).eval()


def _score(candidate: PreTrainedModel, part: Part, model: str) -> list[Score]:
    params, root = load_params(), find_root()
    entry = params.model(model)
    if part == "readings":
        return score_readings(model, params, root, candidate)
    is_test = part == "test"
    task = load_task(model, params, root, downstream=is_test)
    return [score_test(task, entry.recovery if is_test else entry, candidate)]


def run_process(spec: dict, rank: int) -> None:
    """Take part in the scoring that `score_candidate` has described."""
    names = {name: spec[name] for name in ("model", "variant", "seed", "bits")}
    torch.set_num_threads(load_params().threads)
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        scores = _score(load_candidate(**names, rank=rank), spec["part"], spec["model"])
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
