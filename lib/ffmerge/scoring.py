"""How good a model is on held-out data: perplexity of text, or else how far its outputs are off."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ffmerge.activations import Batch, run_batch

IGNORED = -100  # the label of padding


@torch.no_grad()
def measure_perplexity(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Perplexity per token: each token that is predicted weighs the same.

    Args:
        model: a decoder, or an encoder and a decoder.
        batches: keyword arguments for its forward, with labels.
    """
    total, n = 0.0, 0
    for batch in batches:
        labels = batch["labels"]
        if not getattr(model.config, "is_encoder_decoder", False):
            labels = labels[:, 1:]  # nothing predicts the first token
        count = int((labels != IGNORED).sum())
        total, n = total + float(run_batch(model, batch).loss) * count, n + count
    mean = total / n
    return math.exp(mean) if mean < 700 else math.inf  # beyond the largest float


@torch.no_grad()
def measure_reconstruction(small: nn.Module, base: nn.Module, batches: Iterable[Batch]) -> float:
    """The squared error of a model's outputs over the variance of those of its base.

    Args:
        small: the compressed model.
        base: what it was made from.
        batches: keyword arguments for their forward; without padding.

    Returns:
        In percent: 0 where nothing is lost; 100 is what the mean alone would lose.
    """
    error, squares, sums, n = 0.0, 0.0, 0.0, 0
    for batch in batches:
        own, whole = (_find_outputs(model, batch) for model in (small, base))
        error += float((own - whole).square().sum())
        squares += float(whole.square().sum())
        sums = sums + whole.sum(0)
        n += len(whole)
    variance = squares - float(torch.as_tensor(sums).square().sum()) / n
    if variance <= 0:
        raise ValueError("outputs are all the same; valid are two or more examples that differ")
    return 100 * error / variance


def _find_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Logits, or the last hidden state of a model without: (n, width) float64."""
    out = run_batch(model, batch)
    rows = out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
    return rows.cpu().double().flatten(0, -2)
