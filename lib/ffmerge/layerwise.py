"""Optimal Brain Surgeon's pruning with other choices: another ridge, or layer by layer.

The methods (`neurons_obs_refit`) see all sublayers of the base in one pass, at one ridge; these
are the ablations of both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from ffmerge.activations import Batch
from ffmerge.importance import order_by_surgeon
from ffmerge.leastsquares import RIDGE
from ffmerge.moments import Moments, find_hidden, gather_moments
from ffmerge.patches import Patch, Plan, apply_patch, check_plan
from ffmerge.pruning import prune
from ffmerge.sublayers import find_stacks


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
    stacks = find_stacks(model)
    order = {
        name: {
            i: order_by_surgeon(stacks[name].sublayers[i].read(), moments[name][i], ridge)[0]
            for i, width in enumerate(widths)
            if width < stacks[name].sublayers[i].d_ff
        }
        for name, widths in plan.neurons.items()
    }
    return prune(model, plan, order, moments, ridge)


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
            moments = gather_moments(model, batches(), tokens, find_hidden, [(name, i)])
            widths[i] = width
            step = Plan(neurons={name: tuple(widths)})
            model = apply_patch(model, prune_by_surgeon(model, step, {name: {i: moments[name, i]}}))
    return model
