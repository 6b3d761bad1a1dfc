"""What a neuron matters: magnitude, activation × output, Optimal Brain Surgeon, Taylor.

Each gives scores[stack][i] (d_ff,), higher matters more: `ffmerge.pruning` keeps the highest.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ffmerge.activations import Batch, run_batch
from ffmerge.alignment import to_exact
from ffmerge.leastsquares import RIDGE, invert_ridge, second_moments
from ffmerge.moments import Moments
from ffmerge.sublayers import FeedForward, find_stacks
from ffmerge.weights import Weights

HELD = 0.8  # of what is held must be left, or the rest is let go: n steps then take a third of n³

Scores = dict[str, list[Tensor]]


def score_magnitudes(model: nn.Module) -> Scores:
    """By weights alone: the product of the norms of what leads into a neuron and out of it.

    The baseline of Li et al. (2017), both sides counted, as scaling one against the other changes
    no ReLU network.
    """

    def score(ff: FeedForward) -> Tensor:
        weights = ff.read()
        norms = weights.W_in.norm(dim=1) * weights.W_out.norm(dim=0)  # (d_ff,)
        return norms if weights.W_gate is None else norms * weights.W_gate.norm(dim=1)

    return {name: [score(ff) for ff in s.sublayers] for name, s in find_stacks(model).items()}


def score_activations(model: nn.Module, moments: Mapping[str, Sequence[Moments]]) -> Scores:
    """By what a neuron adds to the output: the spread of its activation times its norm in W_out.

    Without b_out, which could take a mean over, its root mean square instead of its spread.

    Args:
        model: the base.
        moments: moments[stack][i] of its hidden activations.
    """

    def score(weights: Weights, m: Moments) -> Tensor:
        spread = second_moments(weights, m).diagonal().clamp(min=0).sqrt()
        return spread * weights.W_out.cpu().double().norm(dim=0)

    return {
        name: [score(ff.read(), m) for ff, m in zip(s.sublayers, moments[name], strict=True)]
        for name, s in find_stacks(model).items()
    }


def score_surgeon(model: nn.Module, moments: Mapping[str, Sequence[Moments]]) -> Scores:
    """By Optimal Brain Surgeon: how late a neuron goes, if the least missed goes first.

    With G = C + λI, removing neuron j and letting W_out make up for it costs ‖w_j‖² / (G⁻¹)_jj, w_j
    its column of W_out; then W_out -= w_j (G⁻¹)_j: / (G⁻¹)_jj, and G⁻¹ loses its row and column j
    (Hassibi and Stork, 1993; ZipLM, Kurtic et al., 2023).

    Args:
        model: the base.
        moments: moments[stack][i] of its hidden activations.
    """
    return {name: [step for step, _ in found] for name, found in _order_all(model, moments)}


def price_neurons(model: nn.Module, moments: Mapping[str, Sequence[Moments]]) -> Scores:
    """By Optimal Brain Surgeon, comparable between sublayers: the squared error that going adds.

    All sublayers of a stack write into one residual stream, so errors are weighed alike. Arguments
    as of `score_surgeon`.
    """
    return {name: [price for _, price in found] for name, found in _order_all(model, moments)}


def _order_all(model: nn.Module, moments: Mapping[str, Sequence[Moments]]) -> Iterator:
    """Every stack's name, and the steps and prices of its sublayers' neurons."""
    for name, stack in find_stacks(model).items():
        both = zip(stack.sublayers, tqdm(moments[name], "surgeon", unit="FF"), strict=True)
        yield name, [order_by_surgeon(ff.read(), m) for ff, m in both]


def order_by_surgeon(
    weights: Weights, moments: Moments, ridge: float = RIDGE
) -> tuple[Tensor, Tensor]:
    """The step at which each neuron goes, and the price: `find_order`, where the weights are.

    Invariant: with uncorrelated neurons of equal spread the order is that of the norms of W_out.
    """
    W = to_exact(weights.W_out)
    second = second_moments(weights, moments).to(W.device)
    return find_order(second, second @ W.T, ridge)


def find_order(G: Tensor, B: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """The step at which each row of the least squares G W = B goes, the least missed first.

    Args:
        G: (n, n) second moments, float64; on a GPU the work is done there.
        B: (n, d_model), with what is to be met; on the device of G.
        ridge: λ, as a share of the mean diagonal.

    Returns:
        On the CPU: the step of each row, (n,), from 0 for the first; and what each adds to the
        squared error when it goes, (n,), never less than what went before it: so the cheapest rows
        of several problems are those that go first in each.
    """
    inverse = invert_ridge(G, ridge)
    W = inverse @ B  # (n_held, d_model)
    step, price = torch.zeros(2, len(W), dtype=torch.float64)
    held, highest = torch.arange(len(W)), 0.0  # which rows W still has
    gone = torch.zeros(len(W), dtype=torch.bool, device=W.device)
    for n in range(len(step)):
        cost = W.square().sum(1) / inverse.diagonal()
        j = int(cost.masked_fill(gone, torch.inf).argmin())
        highest = max(highest, float(cost[j]))
        step[held[j]], price[held[j]], gone[j] = n, highest, True
        row = inverse[j] / inverse[j, j]
        W -= torch.outer(row, W[j].clone())
        inverse.addr_(inverse[:, j].clone(), row, alpha=-1)
        inverse[j, j] = 1  # its row and column are 0; nothing is divided by 0
        if len(step) - n - 1 < HELD * len(held):
            stay = (~gone).nonzero()[:, 0]
            inverse, W, held, gone = inverse[stay][:, stay], W[stay], held[stay.cpu()], gone[stay]
    return step, price


@torch.inference_mode(False)
@torch.enable_grad()
def score_gradients(model: nn.Module, batches: Iterable[Batch], tokens: int) -> Scores:
    """By first-order Taylor expansion of the loss: what changes if an activation becomes 0.

    The square of the sum of activation × gradient over an example, averaged over examples
    (Molchanov et al., 2019); the stand-in for Hessian-aware criteria.

    Args:
        model: the base.
        batches: keyword arguments for its forward, labels included.
        tokens: positions to see, counted in the first stack.

    Raises:
        ValueError: batches without labels.
    """
    stacks = find_stacks(model)
    sums: dict[tuple[str, int], Tensor] = {}
    caught: dict[tuple[str, int], Tensor] = {}
    handles = []

    def watch(key: tuple[str, int], module: nn.Module) -> None:
        def see(module: nn.Module, args: tuple) -> None:
            caught[key] = args[0].requires_grad_()  # of frozen weights it has none by itself

        handles.append(module.register_forward_pre_hook(see))

    for name, stack in stacks.items():
        for i, ff in enumerate(stack.sublayers):
            watch((name, i), ff.module("W_out"))
    first, seen = (next(iter(stacks)), 0), 0
    try:
        with tqdm(total=tokens, desc="gradients", unit="token") as bar:
            for batch in batches:
                loss = run_batch(model, batch).loss
                if loss is None:
                    raise ValueError("batches have no labels; valid are batches with a loss")
                n = len(next(value for value in batch.values() if isinstance(value, Tensor)))
                slopes = torch.autograd.grad(loss, list(caught.values()))
                for (key, h), slope in zip(caught.items(), slopes, strict=True):
                    effect = (h.float() * slope.float()).detach()
                    effect = effect.reshape(n, -1, h.shape[-1])  # (batch, length, d_ff)
                    effect = effect.sum(1).square().sum(0).cpu()
                    sums[key] = sums.get(key, 0) + effect.double() * n**2  # of a mean loss
                seen += caught[first].flatten(0, -2).shape[0]
                bar.update(seen - bar.n)
                if seen >= tokens:
                    break
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError("batches hold no tokens; valid are batches with a loss")
    if not any(scores.any() for scores in sums.values()):
        raise ValueError("gradients of the loss are all 0; valid are float32 or bfloat16 weights")
    return {name: [sums[name, i] for i in range(len(s))] for name, s in stacks.items()}
