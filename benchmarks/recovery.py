"""What a recovery gives back to a real model, and what the text it saw has to do with it.

    python benchmarks/recovery.py [--long] [--minutes 30] [--workers 2]

Variants of SmolLM2 (or another model of params.yaml with readings) are made anew: merged, layers
dropped, neurons pruned by moments of its own text alone, or of that and a reading's in turn. Then
they are tuned by params.yaml's recipe, on its own text with three seeds, and on both with one; with
--long also for 640 steps of 16 blocks, 2.6 million tokens (on a GPU: nine workers did not fit into
80 GB). Every row of results/benchmarks/recovery.csv is one state, scored as notebook 6 does. Rows
are kept as they come; those that are there already are not run again. recovery.png draws the short
ones.
"""

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from datasets import concatenate_datasets
from transformers import set_seed

from ffmerge.checkpoints import load
from ffmerge.cli.splits import take_in_turn
from ffmerge.files import read_json
from ffmerge.methods import Evidence, find_method
from ffmerge.pairs import load_pairs
from ffmerge.patches import Patch, Plan, apply_patch, load_patch, save_patch
from study.config import find_root, load_params
from study.finetuning import finetune
from study.hardware import find_device
from study.machine import describe_machine
from study.peaks import read_peak
from study.report.recovery import plot_recovery
from study.report.style import use_style
from study.sections import Training
from study.tasks import load_task, make_batches, score_readings, score_test
from study.upkeep import update_table

OWN, MIXED = "own", "own and reading"
READING = "addresses"
LONG = {"steps": 640, "batch_size": 16, "warmup_steps": 32, "evaluate_every": 160}
METHODS = {  # method and ratio of what is made; pruned ones from either text
    "base": [("base", "")],
    "shares": [("permute", "third"), ("permute", "half"), ("vanilla", "third")],
    "drops": [("drop", "third"), ("drop", "sixth")],
    "prunes": [("neurons_obs_refit", "third"), ("neurons_obs_refit", "half")],
}


@dataclass(frozen=True)
class Run:
    """One state of the model.

    Attributes:
        method, ratio: how it is compressed.
        calibrated: the text whose moments decide what is pruned; "" where none do.
        tuned: the text that it is tuned on; "" where it is not.
        steps, batch_size, precision, seed: of the tuning.
    """

    method: str
    ratio: str
    calibrated: str = ""
    tuned: str = ""
    steps: int = 0
    batch_size: int = 0
    precision: str = ""
    seed: int = -1


def list_runs(short: Training, long: Training | None) -> list[Run]:
    """All states, what matters most first."""
    shown = [(m, r, "") for kind in ("drops", "shares", "base") for m, r in METHODS[kind]]
    own, mixed = ([(m, r, text) for m, r in METHODS["prunes"]] for text in (OWN, MIXED))

    def tune(states, text: str, recipe: Training, seeds) -> list[Run]:
        told = recipe.steps, recipe.batch_size, recipe.precision
        return [Run(*each, text, *told, seed) for seed in seeds for each in states]

    runs = [Run(*each) for each in [*own, *mixed, *shown]]
    runs += tune([*own, *shown], OWN, short, range(3))
    runs += tune([*mixed, *shown], MIXED, short, [0])
    if long:
        runs += tune([*own, *shown], OWN, long, [0]) + tune([*mixed, *shown], MIXED, long, [0])
    return runs


def make_recipes(params, name):
    """The short recipe of params.yaml, and the long one."""
    short = params.training(name, "base-tuned")
    return short, short.model_copy(update=LONG | {"precision": "auto"})


class Mixture:
    """A task and its reading, one text after the other, in training and in validation."""

    def __init__(self, tasks) -> None:
        self.tasks, self.metric = tasks, tasks[0].metric
        self.collate, self.evaluate = tasks[0].collate, tasks[0].evaluate

    def dataset(self, split, limit=None, seed=0):
        """The examples of all, to be shuffled."""
        return concatenate_datasets([task.dataset(split, limit, seed) for task in self.tasks])


def mix_batches(tasks, batch_size: int):
    """Batches of several tasks' training data, in turn."""
    return take_in_turn([make_batches(task, "train", batch_size) for task in tasks])


def make_patches(name: str, runs: list[Run], folder: Path) -> None:
    """Compress the base in every way, and keep the patches."""
    root, params = find_root(), load_params()
    entry = params.model(name)
    tasks = load_task(name, params, root), load_task(name, params, root, reading=READING)
    base = load(root / f"models/{name}/base", attn_implementation=entry.attention)
    base = base.to(find_device())
    pairs = load_pairs(root / f"models/{name}/permutations.safetensors")
    evidence = {
        text: Evidence(pairs, partial(mix_batches, used, entry.batch_size))
        for text, used in (("", ()), (OWN, tasks[:1]), (MIXED, tasks))
    }
    for run in runs:
        if run.method == "base" or place_patch(folder, run).exists():
            continue
        chosen = read_json(root / f"results/models/{name}/chosen/{run.method}.json")
        plan = Plan.from_json(chosen[run.ratio][0])
        patch = find_method(run.method).make(base, plan, evidence[run.calibrated])
        save_patch(patch, place_patch(folder, run))


def place_patch(folder: Path, run: Run) -> Path:
    """Where the patch of a state lies."""
    return folder / f"{run.method}-{run.ratio}-{run.calibrated.replace(' ', '-')}.safetensors"


def score(name: str, run: Run, folder: Path) -> dict:
    """Make one state, tune it, score it."""
    start, root, params = time.perf_counter(), find_root(), load_params()
    torch.set_num_threads(params.threads)
    entry = params.model(name)
    task = load_task(name, params, root)
    base = load(root / f"models/{name}/base", attn_implementation=entry.attention)
    patch = Patch(Plan(), {}) if run.method == "base" else load_patch(place_patch(folder, run))
    model = apply_patch(base, patch).to(find_device())
    row = asdict(run)
    if run.tuned:
        training = make_recipes(params, name)[run.batch_size == LONG["batch_size"]]
        used, taught = [task], task
        if run.tuned == MIXED:
            used.append(load_task(name, params, root, reading=READING))
            taught = Mixture(used)
        n = entry.validation_examples
        validation = [b for t in used for b in make_batches(t, "validation", entry.batch_size, n)]
        set_seed(run.seed)
        with tempfile.TemporaryDirectory() as scratch:
            begun = time.perf_counter()
            curve = finetune(model, taught, training, validation, run.seed, Path(scratch))
            row["seconds to tune"] = time.perf_counter() - begun
        row["precision"] = curve.trained_in.iloc[0]
        row["best validation"] = curve[taught.metric.name].min()
    for found in [
        score_test(task, entry.recovery, model),
        *score_readings(name, params, root, model),
    ]:
        metric, value = next(iter(found.values.items()))
        row[metric.name] = value
    return row | {"seconds": time.perf_counter() - start, "peak_gb": read_peak() / 1e9}


def main() -> None:
    """Run what is not there yet, write after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--long", action="store_true", help="the long recovery, too")
    parser.add_argument("--minutes", type=float, default=30, help="begin nothing after that")
    parser.add_argument("--workers", type=int, default=2, help="states at a time")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/recovery.csv"))
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    name, params = options.model, load_params()
    short, long = make_recipes(params, name)
    runs = list_runs(short, long if options.long else None)
    keys = [field.name for field in fields(Run) if field.name != "precision"]
    done = set()
    if options.output.exists():
        rows = pd.read_csv(options.output).fillna("")[keys]
        done = set(rows.itertuples(index=False, name=None))
    runs = [run for run in runs if tuple(asdict(run)[key] for key in keys) not in done]
    told = {"hardware": describe_machine(), "date": date.today().isoformat()}
    with tempfile.TemporaryDirectory() as folder:
        make_patches(name, runs, Path(folder))
        print(f"patches made, {deadline - time.monotonic():.0f} s left", flush=True)
        with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
            waiting = {pool.submit(score, name, run, Path(folder)): run for run in runs}
            for future in as_completed(waiting):
                if future.cancelled():
                    continue
                if error := future.exception():
                    print(f"{waiting[future]}: {error!r}", flush=True)
                    continue
                row = future.result() | told
                update_table(options.output, pd.DataFrame([row]), keys, digits=5)
                print(row, flush=True)
                if time.monotonic() > deadline:
                    pool.shutdown(wait=False, cancel_futures=True)
    draw(options.output, short.steps)


def draw(path: Path, steps: int) -> None:
    """The picture beside the table: of what is not tuned, and of the short recipe."""
    use_style()
    table = pd.read_csv(path)
    plot_recovery(table[table.steps.isin([0, steps])]).savefig(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
