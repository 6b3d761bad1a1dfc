"""`python -m ffmerge compress`: open, read, announce, compress, check, save."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from ffmerge.activations import Batch
from ffmerge.catalogue import check_method
from ffmerge.checkpoints import save, size_on_disk
from ffmerge.cli.announcing import GRADIENTS, announce_memory
from ffmerge.cli.commands import check_out, describe_model, tell, warn
from ffmerge.cli.opening import Opened, open_model
from ffmerge.cli.reading import check_apart
from ffmerge.cli.search import Found, count_removed, find_best, gather_evidence
from ffmerge.cli.splits import Splits, read_splits
from ffmerge.files import write_json
from ffmerge.methods import find_method
from ffmerge.moments import find_tokens
from ffmerge.patches import Plan, check_plan, count_parameters
from ffmerge.saving.folders import ORIGIN
from ffmerge.scoring import measure_perplexity, measure_reconstruction
from ffmerge.sublayers import check_widths, find_stacks

ALIGNED = 10_000  # tokens of features, as in the paper
NOISE = 0.1  # percent, by which outputs may differ from one run to the next
ENOUGH = 25  # tokens of calibration for each neuron, where published results saturate

Score = Callable[[nn.Module, Sequence[Batch]], float]


@dataclass(frozen=True)
class Request:
    """What is to be compressed and how: the arguments of the command."""

    model: str
    remove: Fraction
    data: list[str]
    out: Path
    method: str
    column: str | None
    target: str | None
    tokens: int | None
    held_out: int
    context: int | None
    seed: int


def compress(request: Request) -> None:
    """Compress a model, check it on data that nothing else has seen, and save it.

    Raises:
        ValueError: what cannot be, told before any long work.
    """
    check_method(request.method)
    check_out(request.out, request.model)
    torch.manual_seed(request.seed)
    opened = open_model(request.model)
    tell("model", f"{request.model}: {describe_model(opened.model)}")
    stacks = check_plan(opened.model, Plan())
    if find_method(request.method).REMOVES == "FF sublayers":
        check_widths(stacks)
    check_apart(request.data)
    count = count_removed(opened.model, request.method, request.remove)
    splits = _read_data(request, opened)
    metric, score = choose_score(opened)
    try_out(opened, request.method, score, splits.check[:2])
    n_features = min(ALIGNED, splits.tokens[0])
    announce_memory(opened.model, request.method, n_features, splits.tokens[0])

    before = score(opened.model, splits.check)
    with warnings.catch_warnings():
        # it is told above how many tokens there are: that a method would like more is no news
        warnings.filterwarnings("ignore", message="batches hold")
        evidence = gather_evidence(opened.model, request.method, splits.calibration, n_features)
        best = find_best(
            opened.model, request.method, count, evidence, lambda small: score(small, splits.choice)
        )
    small = best.model
    for parameter in small.parameters():  # with the digits that will be saved
        parameter.data = parameter.data.to(opened.dtype).float()
    after = score(small, splits.check)
    measured = {f"{metric}, before": f"{before:.4g}", f"{metric}, after": f"{after:.4g}"}
    how = {"method": request.method, "base": request.model, "measured": measured}
    check_out(request.out, request.model)  # nobody has written there meanwhile
    save(small.to(opened.dtype), request.out, opened.processor, **how)
    sizes = [count_parameters(model) for model in (opened.model, small)]
    scores = {"metric": metric, "before": before, "after": after, "parameters": sizes}
    _write_origin(request, count, best, splits, scores)

    tell("done", f"{request.method}, {best.plan}")
    tell("quality", f"{metric} {before:.4g} → {after:.4g} on the {splits.tokens[2]:,} tokens")
    saved, n_bytes = 1 - sizes[1] / sizes[0], size_on_disk(request.out)
    tell("size", f"{sizes[0]:,} → {sizes[1]:,} parameters (−{saved:.1%}), {n_bytes:,} bytes")
    tell("saved", f'{request.out}; open it with ffmerge.load(Path("{request.out}"))')


def choose_score(opened: Opened) -> tuple[str, Score]:
    """What a model is scored by, the lower the better: perplexity where there is a loss."""
    if opened.has_loss:
        return "perplexity", measure_perplexity
    return (
        "reconstruction error (%)",
        lambda small, batches: measure_reconstruction(small, opened.model, batches),
    )


def try_out(opened: Opened, method: str, score: Score, batches: Sequence[Batch]) -> None:
    """Run a model on a batch: what cannot be compressed with these data says so at once.

    Raises:
        ValueError: it does not run or score, there are layers that the data never reach, a method
            that wants a loss, weights that are not finite, or outputs drawn at random.
    """
    if method in GRADIENTS and not opened.has_loss:
        raise ValueError(f"--method is {method}, and this model has no loss; valid are others")
    seen, handles = set(), []
    for name, stack in find_stacks(opened.model).items():
        see = partial(lambda name, *unused: seen.add(name), name)
        handles.append(stack.layers[0].register_forward_hook(see))
    try:
        value = score(opened.model, batches)
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        valid = "valid are models that read texts, pairs of texts or images and nothing else"
        raise ValueError(f"this model does not run on these data ({told}); {valid}") from error
    finally:
        for handle in handles:
            handle.remove()
    if unseen := find_stacks(opened.model).keys() - seen:
        told = f"these data never reach the {min(unseen)} of the model"
        raise ValueError(f"{told}; valid is the part that reads them, as a model of its own")
    if not math.isfinite(value) or (not opened.has_loss and value > NOISE):
        told = f"the uncompressed model has {value} here"
        raise ValueError(f"{told}; valid are finite weights, and outputs the same each time")


def _read_data(request: Request, opened: Opened) -> Splits:
    tokens = request.tokens or find_tokens(opened.model)
    reading = {name: getattr(request, name) for name in ("column", "target", "context", "seed")}
    splits = read_splits(opened, request.data, tokens, request.held_out, **reading)
    calibration, choice, check = (f"{n:,}" for n in splits.tokens)
    tell("data", f"{calibration} tokens to calibrate with, {choice} to choose, {check} to check")
    d_ff = max(ff.d_ff for s in find_stacks(opened.model).values() for ff in s.sublayers)
    if find_method(request.method).NEEDS and splits.tokens[0] < ENOUGH * d_ff:
        warn(
            f"{calibration} tokens calibrate {d_ff:,} neurons in each FF sublayer, and "
            f"{ENOUGH * d_ff:,} or more are advised ({ENOUGH} a neuron)"
        )
    return splits


def _write_origin(
    request: Request, count: int, best: Found, splits: Splits, scores: dict[str, object]
) -> None:
    """How the model was made, beside its weights."""
    origin = {
        "base": request.model,
        "method": request.method,
        "removed": f"{count} {find_method(request.method).REMOVES}",
        "layers": str(best.plan),
        "data": " and ".join(request.data),
        "tokens": dict(zip(("calibration", "choice", "check"), splits.tokens, strict=True)),
        "seed": request.seed,
        **scores,
        "candidates": dict(best.scores),
        "versions": {name: _find_version(name) for name in ("ffmerge", "torch", "transformers")},
    }
    write_json(origin, request.out / ORIGIN)


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "not installed"
