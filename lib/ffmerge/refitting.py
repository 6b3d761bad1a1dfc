"""Refit a merge: after permuting and averaging, fit the shared FF to what each sublayer computed.

One pass of calibration data through the base for W_in (and W_gate), one for W_out. Statistics are
centred in each layer, where there are biases.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ffmerge.activations import Batch, observe, peek
from ffmerge.leastsquares import RIDGE, solve_ridge
from ffmerge.moments import (
    BUDGET,
    Key,
    Moments,
    Observe,
    find_hidden,
    find_inputs,
    find_tokens,
    gather_moments,
)
from ffmerge.patches import Patch, Plan, check_plan
from ffmerge.spilling import Kept, has_room
from ffmerge.sublayers import WITHOUT, find_activation, find_depths, find_stacks
from ffmerge.weights import Weights, average, permute

TOLERANCE = 0.05  # of hidden activations, well above the rounding of half precision


@dataclass(frozen=True)
class Read:
    """What a base's FF sublayers read, the same for every candidate.

    Attributes:
        moments: of each sublayer's inputs.
        activation: the model's function, once it is clear that it explains what its FFs compute.
        observe: what hands these inputs on again: from disk, or by running the model.
    """

    moments: Mapping[Key, Moments]
    activation: Callable[[Tensor], Tensor]
    observe: Observe = observe


def read_inputs(
    model: nn.Module,
    batches: Iterable[Batch],
    tokens: int | None = None,
    keys: Iterable[Key] | None = None,
) -> Read:
    """The second moments of what FF sublayers read, in one pass through the base.

    Args:
        model, batches, tokens: as in `ffmerge.moments.collect_moments`.
        keys: stack and layer of each sublayer; all if left out.
    """
    every = [(name, i) for name, n in find_depths(model).items() for i in range(n)]
    tokens = tokens or find_tokens(model)
    first, batches = peek(batches)
    activation = learn_activation(model, first)
    d_model = max(stack.sublayers[0].read().W_in.shape[1] for stack in find_stacks(model).values())
    size = 4 * tokens * d_model * len(every)  # bytes
    again = observe
    if size <= BUDGET and has_room(size):
        again = Kept(model, batches, tokens, find_inputs).observe
    keys = keys or every
    moments = gather_moments(model, batches, tokens, find_inputs, keys, observe=again)
    return Read(moments, activation, again)


def refit_groups(
    model: nn.Module,
    plan: Plan,
    permutations: Mapping[str, Mapping[int, Tensor]],
    batches: Callable[[], Iterable[Batch]],
    tokens: int | None = None,
    ridge: float = RIDGE,
    read: Read | None = None,
) -> Patch:
    """Permute, then fit one FF to every group by ridge least squares, W_in first, then W_out.

    W_in = (Σ_i P_i W_i G_i) (Σ_i G_i + λI)⁻¹ over the group's layers i, G_i the second moments of
    what layer i reads (RegMean): the features of all are met as well as one matrix can. Then W_out
    the same way from the hidden activations that W_in gives to the outputs of each layer.

    Args:
        model: the base; left as it is.
        plan: its groups.
        permutations: permutations[stack][i] (d_ff,), as in `ffmerge.merging.merge_groups`.
        batches: gives calibration data, the same at every call.
        tokens: how many to see; `find_tokens` if left out.
        ridge: λ, as a share of the mean diagonal.
        read: what `read_inputs` gave for the same data; found now if left out.

    Returns:
        The patch: one sublayer for each group, under the name of the group's first layer.

    Invariant: a group of identical sublayers gives that sublayer, up to the ridge.
    """
    stacks = check_plan(model, plan)
    groups = {name: plan.groups.get(name, ()) for name in stacks}
    aligned: dict[Key, Weights] = {}
    for name, stack in stacks.items():
        for i in (i for group in groups[name] for i in group.layers):
            weights, p = stack.sublayers[i].read(), permutations.get(name, {}).get(i)
            aligned[name, i] = weights if p is None else permute(weights, p)
    read = read or read_inputs(model, batches(), tokens, aligned)
    shared = {
        (name, group): _fit_inputs(
            [aligned[name, i] for i in group.layers],
            [read.moments[name, i] for i in group.layers],
            ridge,
        )
        for name in stacks
        for group in groups[name]
    }
    of_layer = {(name, i): w for (name, group), w in shared.items() for i in group.layers}

    def see(key: Key, x: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden activations of the shared FF, and beside them the layer's own: (n, d_ff) each."""
        shared, own = (compute_hidden(w[key], x, read.activation) for w in (of_layer, aligned))
        return shared, own

    seen = gather_moments(model, batches(), tokens, find_inputs, aligned, see, observe=read.observe)
    tensors = {}
    for (name, group), weights in shared.items():
        own, moments = zip(*((aligned[name, i], seen[name, i]) for i in group.layers), strict=True)
        tensors |= stacks[name].arrange(group.layers[0], _fit_output(weights, own, moments, ridge))
    return Patch(plan, tensors)


def learn_activation(model: nn.Module, batch: Batch | None) -> Callable[[Tensor], Tensor]:
    """The activation function of a model, once it is clear that it explains what its FFs compute.

    Args:
        model: any model that `find_stacks` knows.
        batch: of its own data; without one nothing is checked.

    Raises:
        ValueError: as `find_activation`; or the hidden activations of some layer are others, as
            where gate and input change places or an FF scales or clips.
    """
    activation, stacks = find_activation(model), find_stacks(model)
    read: dict[tuple[str, int], Tensor] = {}  # what a sublayer reads, until what W_out reads comes

    def compare(place: int, name: str, i: int, x: Tensor) -> None:
        if place == 0:
            read[name, i] = x
            return
        found = compute_hidden(stacks[name].sublayers[i].read(), read.pop((name, i)), activation)
        error = (found - x).norm()
        if not error <= TOLERANCE * x.norm():
            raise ValueError(
                f"hidden activations of layer {i} of the {name} of {type(model).__name__} are "
                f"{float(error / x.norm()):.0%} off from what its configuration's activation "
                f"function gives; {WITHOUT}"
            )

    if batch is not None:
        observe(model, [batch], 2, [find_inputs, find_hidden], compare)
    return activation


def compute_hidden(weights: Weights, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The hidden activations of one FF sublayer, which W_out reads: (n_tokens, d_ff).

    Args:
        weights: of the sublayer.
        x: (n_tokens, d_model), what it reads.
        activation: the model's.
    """

    def project(W: Tensor, b: Tensor | None) -> Tensor:
        return x @ W.to(x).T + (0 if b is None else b.to(x))

    z = project(weights.W_in, weights.b_in)  # (n_tokens, d_ff)
    if weights.W_gate is None:
        return activation(z)
    return activation(project(weights.W_gate, weights.b_gate)) * z


def compute_output(weights: Weights, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """What one FF sublayer puts out: (n_tokens, d_model); arguments as in `compute_hidden`."""
    y = compute_hidden(weights, x, activation) @ weights.W_out.to(x).T
    return y if weights.b_out is None else y + weights.b_out.to(x)


def collect_inputs(
    model: nn.Module, batches: Iterable[Batch], tokens: int, keys: Container[Key]
) -> dict[Key, Tensor]:
    """What some FF sublayers of the base read: (n_tokens, d_model) each.

    Args:
        model, batches, tokens: as in `ffmerge.activations.collect_features`.
        keys: stack and layer of each sublayer.
    """
    read: dict[Key, list[Tensor]] = {}

    def receive(place: int, name: str, i: int, x: Tensor) -> None:
        if (name, i) in keys:
            read.setdefault((name, i), []).append(x)

    observe(model, batches, tokens, [find_inputs], receive)
    return {key: torch.cat(rows) for key, rows in read.items()}


def _fit_inputs(own: list[Weights], read: list[Moments], ridge: float) -> Weights:
    """One W_in (and W_gate) for all: least squares on the features of each, then W_out's mean."""
    mean = average(own)
    fitted = {}
    for projection, bias in (("W_in", "b_in"), ("W_gate", "b_gate")):
        if getattr(mean, projection) is None:
            continue
        has_bias = getattr(mean, bias) is not None
        G, B = 0, 0
        for weights, m in zip(own, read, strict=True):
            second = _augment(m) if has_bias else m.second  # (d_model (+ 1), …)
            W = getattr(weights, projection).cpu().double()
            if has_bias:
                W = torch.cat([W, getattr(weights, bias).cpu().double()[:, None]], 1)
            G, B = G + second, B + second @ W.T
        W = solve_ridge(G, B, ridge).T
        like = getattr(mean, projection)
        if has_bias:
            fitted[bias] = W[:, -1].to(like)
            W = W[:, :-1]
        fitted[projection] = W.to(like)
    return replace(mean, **fitted)


def _fit_output(
    shared: Weights, own: tuple[Weights, ...], seen: tuple[Moments, ...], ridge: float
) -> Weights:
    """One W_out (and b_out) for all: least squares from the shared hidden activations."""
    n = len(shared.W_in)
    has_bias = shared.b_out is not None
    G, B = 0, 0
    for weights, m in zip(own, seen, strict=True):
        W = weights.W_out.cpu().double()
        second = _augment(m) if has_bias else m.second  # of shared (, 1) and shared, own (, 1)
        places = torch.arange(n)
        if has_bias:
            W = torch.cat([W, weights.b_out.cpu().double()[:, None]], 1)
            places = torch.cat([places, torch.tensor([2 * n])])
        G, B = G + second[:, places], B + second[:, n:] @ W.T
    W = solve_ridge(G, B, ridge).T
    like = shared.W_out
    if not has_bias:
        return replace(shared, W_out=W.to(like))
    return replace(shared, W_out=W[:, :-1].to(like), b_out=W[:, -1].to(like))


def _augment(m: Moments) -> Tensor:
    """E[(x, 1) (x, 1)ᵀ], or with y beside x E[(x, 1) (x, y, 1)ᵀ]: least squares with a bias."""
    one, second = torch.ones(1, dtype=torch.float64), m.second
    top = torch.cat([second, m.mean[: len(second), None]], 1)
    return torch.cat([top, torch.cat([m.mean, one])[None]], 0)
