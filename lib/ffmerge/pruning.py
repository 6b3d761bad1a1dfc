"""Prune neurons: keep those of every FF sublayer that matter most, at the size of a merge."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ffmerge.leastsquares import RIDGE, refit_output
from ffmerge.moments import Moments
from ffmerge.patches import Patch, Plan, check_plan
from ffmerge.sublayers import Stack, find_stacks
from ffmerge.weights import select

# scores[stack][i]: (d_ff,), higher matters more; of those that lose neurons
Scores = Mapping[str, Sequence[Tensor] | Mapping[int, Tensor]]


def list_neuron_plans(model: nn.Module, count: int) -> list[Plan]:
    """The one plan that keeps equally many neurons everywhere, as many as a merge would store.

    Args:
        model: the base.
        count: the FF sublayers that a merge would remove, from all stacks alike.

    Returns:
        One plan: the most neurons whose parameters are no more than those of the merged model.

    Raises:
        ValueError: less than one neuron would be left.
    """
    stacks = find_stacks(model)
    each = count // len(stacks)
    return [Plan(neurons={name: _fit_widths(name, s, each) for name, s in stacks.items()})]


def prune(
    model: nn.Module,
    plan: Plan,
    scores: Scores,
    moments: Mapping[str, Sequence[Moments] | Mapping[int, Moments]] | None = None,
    ridge: float = RIDGE,
) -> Patch:
    """Keep the neurons of the highest scores, in their own order.

    Args:
        model: the base; left as it is.
        plan: how many neurons stay in each sublayer.
        scores: scores[stack][i] (d_ff,), such as `ffmerge.importance` gives.
        moments: moments[stack][i]: fit W_out and b_out to what all neurons gave
            (`ffmerge.leastsquares`); without them the weights stay as they are.
        ridge: of that fit.

    Returns:
        The patch.

    Invariant: a sublayer that keeps all its neurons is not touched.
    """
    tensors = {}
    for name, stack in check_plan(model, plan).items():
        for i, width in enumerate(plan.neurons.get(name, ())):
            ff = stack.sublayers[i]
            if width < ff.d_ff:
                weights, kept = ff.read(), keep_highest(scores[name][i], width)
                small = select(weights, kept)
                if moments is not None:
                    small = refit_output(weights, moments[name][i], kept, ridge)
                tensors |= stack.arrange(i, small)
    return Patch(plan, tensors)


def spread_neurons(plan: Plan, prices: Scores) -> Plan:
    """As many neurons as a plan keeps, spent where they are worth most in each stack.

    Args:
        plan: an even one, such as `list_neuron_plans` gives.
        prices: prices[stack][i] (d_ff,): what going costs, comparable between sublayers.

    Returns:
        A plan of as many neurons in every stack; each sublayer keeps one at least.
    """
    neurons = {}
    for name, widths in plan.neurons.items():
        table = torch.stack(list(prices[name])).sort(dim=1).values  # (n_layers, d_ff), rising
        table[:, -1] = torch.inf
        gone = table.flatten().argsort(stable=True)[: table.numel() - sum(widths)]
        lost = torch.bincount(gone // table.shape[1], minlength=len(table))
        neurons[name] = tuple((table.shape[1] - lost).tolist())
    return Plan(neurons=neurons)


def keep_highest(scores: Tensor, n: int) -> Tensor:
    """The places of the n highest scores, ascending: (n,) int64; of equals the earlier."""
    order = torch.argsort(scores.cpu().double(), descending=True, stable=True)
    return order[:n].sort().values


def _fit_widths(name: str, stack: Stack, removed: int) -> tuple[int, ...]:
    """Equal widths at which a stack holds no more than with `removed` sublayers less."""
    each, n = stack.sublayers[0], len(stack)
    per_neuron = (each.n_parameters - each.n_fixed) // each.d_ff
    budget = (n - removed) * each.n_parameters - n * each.n_fixed
    width = min(budget // (n * per_neuron), each.d_ff)
    if width < 1:
        raise ValueError(
            f"{removed} of {n} FF sublayers of the {name} leave no neuron to each; valid "
            f"are at most {n - 1}"
        )
    return (width,) * n
