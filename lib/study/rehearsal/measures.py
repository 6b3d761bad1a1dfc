"""What each part takes: measured on a sample, told for one unit of the real run."""

import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ffmerge.alignment import correlate, find_exact_device, solve_assignment
from ffmerge.checkpoints import load, save, size_on_disk
from ffmerge.importance import find_order
from ffmerge.memory import estimate_features
from ffmerge.methods import Evidence, find_method
from ffmerge.moments import collect_moments
from ffmerge.pairs import pair_name
from ffmerge.patches import apply_patch, apply_plan
from ffmerge.recording import record_features, record_outputs
from ffmerge.similarity import cka
from study.finetuning import finetune
from study.hardware import find_device
from study.peaks import read_peak
from study.places import make_scratch
from study.quantization import add_adapters
from study.rehearsal.models import BEAMS, RandomTask, make_model
from study.rehearsal.parts import CORRELATED, Rehearsal
from study.sections import Training, Use

STEPS = 6  # small and large batches in turn; the first step makes room and does not count


def measure(r: Rehearsal, key: str) -> dict:
    """Measure one part.

    Args:
        r: the rehearsal.
        key: of the part.

    Returns:
        seconds (of one unit), sample (in words), peak (bytes); and where it is known disk (bytes of
        one unit).
    """
    torch.manual_seed(0)
    torch.set_num_threads(r.params.threads)
    is_score = key.startswith("score ")
    found = _score(r, r.uses[key.removeprefix("score ")]) if is_score else MEASURES[key](r)
    return found | {"peak": read_peak()}


def _score(r: Rehearsal, use: Use) -> dict:
    model, task = make_random(r), _make_task(r, use)
    rows, length = r.sample(use.batch_size, r.length(use))
    task.evaluate(model, [task.make_batch(1, length)])  # the first run makes room
    seconds = _time(lambda: task.evaluate(model, [task.make_batch(rows, length)]))
    return {"seconds": seconds / rows / length, "sample": f"a batch of {rows} × {length}"}


def _record(r: Rehearsal, record: Callable, bytes_per_token: int) -> dict:
    model, task = make_random(r), _make_task(r, r.entry)
    rows, length = r.sample(r.entry.features.batch_size, r.length(r.entry))
    n = rows * length
    batches = [task.make_batch(rows, length) for _ in range(2)]
    with TemporaryDirectory(dir=make_scratch()) as folder:
        seconds = _time(lambda: record(model, batches, Path(folder) / "recorded", 2 * n))
    return {"seconds": seconds / 2 / n, "sample": f"{2 * n} tokens", "disk": bytes_per_token}


def _features(r: Rehearsal) -> dict:
    return _record(r, record_features, estimate_features(r.outline, 1))


def _outputs(r: Rehearsal) -> dict:
    return _record(r, record_outputs, 0)


def _cka(r: Rehearsal) -> dict:
    tokens, d_model = r.entry.features.tokens, r.widths[0]
    x, y = torch.randn(2, tokens, d_model)  # on the CPU, as they are read from disk
    seconds = _time(lambda: cka(x, y)) / 3  # with the norms of both
    return {"seconds": seconds, "sample": f"{tokens} tokens, d_model {d_model}"}


def _pair(r: Rehearsal) -> dict:
    tokens, (d_model, d_ff) = r.entry.features.tokens, r.widths
    some, kept = min(tokens, CORRELATED), []
    x, y = make_features(some, d_model, d_ff)
    place = find_device()
    correlate(x[:2], y[:2], device=place)  # the first one makes room
    correlated = _time(lambda: kept.append(correlate(x, y, device=place))) * tokens / some
    assigned = _time(lambda: solve_assignment(*kept))
    sample = f"{some} of {tokens} tokens, d_ff {d_ff}: {correlated:.1f} s + {assigned:.1f} s"
    return {"seconds": correlated + assigned, "sample": sample, "disk": 4 * d_ff}


def make_features(tokens: int, d_model: int, d_ff: int) -> tuple[Tensor, Tensor]:
    """Features of two sublayers that read one stream: of rank d_model, a power law over directions.

    Args:
        tokens, d_model, d_ff: of the sublayers.

    Returns:
        Two tensors (tokens, d_ff).
    """
    scale = torch.arange(1, d_model + 1) ** -0.5
    x = torch.randn(tokens, d_model)
    y = 0.6 * x + 0.8 * torch.randn(tokens, d_model)
    W, V = torch.randn(2, d_model, d_ff)
    return x * scale @ W, y * scale @ V


def _merge(r: Rehearsal) -> dict:
    base, permute = make_random(r), find_method("permute")
    groups = [(name, g) for name, found in r.plan.groups.items() for g in found]
    pairs = {
        pair_name(name, g.anchor, i): torch.randperm(r.widths[1])
        for name, g in groups
        for i in g.others
    }

    def make() -> nn.Module:
        return apply_patch(base, permute.make(base, r.plan, Evidence(pairs)))

    return {"seconds": _time(make), "sample": f"one candidate, FF sublayers {r.plan}"}


def _moments(r: Rehearsal) -> dict:
    model, task = make_random(r), _make_task(r, r.entry)
    rows, length = r.sample(r.entry.batch_size, r.length(r.entry))
    batch = task.make_batch(rows, length)
    seconds = _time(lambda: collect_moments(model, [batch], rows * length))
    return {"seconds": seconds / rows / length, "sample": f"a batch of {rows} × {length}"}


def _order(r: Rehearsal) -> dict:
    d_model, d_ff = r.widths
    n, place = r.ordered, find_exact_device(torch.device(find_device()))
    x = torch.randn(2 * n, n, dtype=torch.float64).to(place)
    B = torch.randn(n, d_model, dtype=torch.float64).to(place)
    seconds = _time(lambda: find_order(x.T @ x, B)) * (d_ff / n) ** 3
    return {"seconds": seconds, "sample": f"{n} of {d_ff} neurons, times ({d_ff} / {n})³"}


def _save(r: Rehearsal, tied: bool = False) -> dict:
    model = make_random(r, tied).cpu()
    with TemporaryDirectory(dir=make_scratch()) as folder:

        def go() -> None:
            save(model, Path(folder) / "model")
            load(Path(folder) / "model")

        seconds = _time(go)
        size = size_on_disk(Path(folder) / "model")
    return {"seconds": seconds, "sample": "one model", "disk": size}


def _tune(r: Rehearsal, tied: bool) -> dict:
    use, training = r.entry.recovery, r.entry.finetune
    return _train(r, make_random(r, tied), use, training)


def _train(r: Rehearsal, model: nn.Module, use: Use, training: Training) -> dict:
    """Seconds of one step at the real batch: what a step takes whatever its size, and per token."""
    rows, length = r.sample(training.batch_size, r.length(use), 3)
    large, small = (rows, length), (max(1, rows // 4), length)
    if rows == 1 and use.task != "images":
        small = (1, max(8, length // 4))
    if training.precision != "float32" and find_device() != "cuda":
        training = training.model_copy(update={"precision": "auto"})
    short = {"steps": STEPS, "evaluate_every": STEPS, "batch_size": 1, "distillation": 0.0}
    short |= {"warmup_steps": 0, "decay_steps": None}
    task = _make_task(r, use)
    task.sizes = cycle([small, large])
    with TemporaryDirectory(dir=make_scratch()) as folder:
        if training.adapters:
            compute = {"attn_implementation": r.entry.attention}
            model = add_adapters(model, training.adapters, Path(folder) / "frozen", **compute)
        marks = _mark_steps(model)
        validation = [task.make_batch(1, length)]
        recipe = training.model_copy(update=short)
        curve = finetune(model, task, recipe, validation, 0, Path(folder) / "trainer")
    taken = {True: [], False: []}  # is large: seconds
    for i in range(1, STEPS - 1):
        taken[i % 2 == 1].append(marks[i + 1] - marks[i])
    most, least = median(taken[True]), median(taken[False])
    n, m, real = (a * b for a, b in (large, small, (training.batch_size, r.length(use))))
    slope = max(0.0, most - least) / (n - m) if n > m else most / n
    sample = f"steps of {m} and {n} tokens, of {real}; {curve.trained_in.iloc[0]}"
    return {"seconds": most + slope * (real - n), "sample": sample}


def _mark_steps(model: nn.Module) -> list[float]:
    """When each training step begins: between two forward passes lies one step."""
    marks: list[float] = []

    def mark(module: nn.Module, args: tuple) -> None:
        if module.training:
            marks.append(read_clock())

    model.register_forward_pre_hook(mark)
    return marks


def make_random(r: Rehearsal, tied: bool = False) -> nn.Module:
    """The model with random weights where it would run; with the first window merged, if tied."""
    model = make_model(r.config, r.entry.task)
    model.set_attn_implementation(r.entry.attention)
    return (apply_plan(model, r.plan) if tied else model).to(find_device())


def _make_task(r: Rehearsal, use: Use) -> RandomTask:
    return RandomTask(r.config, use.task, BEAMS.get(r.entry.base.hub, 1))


def _time(do: Callable[[], object]) -> float:
    start = read_clock()
    do()
    return read_clock() - start


def read_clock() -> float:
    """Seconds; of one thread on a CPU those of the processor, which others do not lengthen."""
    if find_device() == "cuda":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


MEASURES: dict[str, Callable[[Rehearsal], dict]] = {
    "features": _features,
    "outputs": _outputs,
    "cka": _cka,
    "pair": _pair,
    "merge": _merge,
    "moments": _moments,
    "order": _order,
    "save": _save,
    "save tied": lambda r: _save(r, tied=True),
    "tied": lambda r: _tune(r, tied=True),
    "untied": lambda r: _tune(r, tied=False),
    "train": lambda r: _train(r, make_random(r), r.entry, r.entry.base.training),
}
