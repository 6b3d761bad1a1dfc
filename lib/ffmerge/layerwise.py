"""Optimal Brain Surgeon's pruning with other choices: another ridge, or layer by layer.

The methods (`neurons_obs_refit`) see all sublayers of the base in one pass, at one ridge; these
are the ablations of both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from ffmerge.activations import Batch, observe
from ffmerge.importance import order_by_surgeon
from ffmerge.leastsquares import RIDGE, refit_output
from ffmerge.moments import Moments, RunningMoments
from ffmerge.patches import Patch, Plan, apply_patch, check_plan
from ffmerge.pruning import keep_highest


def prune_by_surgeon(
    model: nn.Module,
    plan: Plan,
    moments: Mapping[str, Sequence[Moments] | Mapping[int, Moments]],
    ridge: float = RIDGE,
) -> Patch:
    """Keep the neurons that Optimal Brain Surgeon removes last, and fit W_out, at one ridge.

    Args:
        model: the base; left as it is.
        plan: how many neurons stay in each sublayer.
        moments: moments[stack][i] of its hidden activations, of those that lose neurons.
        ridge: λ, as a share of the mean diagonal.

    Invariant: at the ridge of `ffmerge.leastsquares` it is the method `neurons_obs_refit`; a
    sublayer that keeps all its neurons is not touched.
    """
    tensors = {}
    for name, stack in check_plan(model, plan).items():
        for i, width in enumerate(plan.neurons.get(name, ())):
            ff = stack.sublayers[i]
            if width < ff.d_ff:
                weights, m = ff.read(), moments[name][i]
                kept = keep_highest(order_by_surgeon(weights, m, ridge)[0], width)
                tensors |= stack.arrange(i, refit_output(weights, m, kept, ridge))
    return Patch(plan, tensors)


def prune_in_turn(
    model: nn.Module, plan: Plan, batches: Callable[[], Iterable[Batch]], tokens: int
) -> nn.Module:
    """Prune one sublayer after the other, each on what the ones pruned before it leave.

    Args:
        model: the base; left as it is.
        plan: how many neurons stay in each sublayer.
        batches: gives calibration data, the same at every call.
        tokens: how many to see before each sublayer is pruned.

    Returns:
        The pruned model.
    """
    for name, stack in check_plan(model, plan).items():
        widths = [ff.d_ff for ff in stack.sublayers]
        for i, width in enumerate(plan.neurons.get(name, ())):
            moments = _collect_one(model, batches(), tokens, (name, i))
            widths[i] = width
            step = Plan(neurons={name: tuple(widths)})
            model = apply_patch(model, prune_by_surgeon(model, step, {name: {i: moments}}))
    return model


def _collect_one(
    model: nn.Module, batches: Iterable[Batch], tokens: int, key: tuple[str, int]
) -> Moments:
    """The moments of one sublayer alone, as `collect_moments` gives them of all."""
    running = RunningMoments()

    def receive(place: int, name: str, i: int, rows: Tensor) -> None:
        if (name, i) == key:
            running.update(rows)

    observe(
        model,
        batches,
        tokens,
        [lambda stack, i: (stack.sublayers[i].module("W_out"), True)],
        receive,
    )
    return running.value()
