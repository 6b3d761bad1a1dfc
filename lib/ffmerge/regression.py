"""Local regression: train each shared FF on what the base's sublayers put out, and on nothing else.

No labels, and no gradient leaves the sublayer: a few hundred steps take seconds.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ffmerge.activations import Batch, peek
from ffmerge.moments import find_tokens
from ffmerge.patches import Patch, apply_patch, check_plan
from ffmerge.refitting import collect_inputs, compute_output, learn_activation
from ffmerge.sublayers import find_stacks
from ffmerge.weights import Weights

BATCH = 1024  # tokens of every layer of a group in a step


def regress_groups(
    model: nn.Module,
    start: Patch,
    batches: Callable[[], Iterable[Batch]],
    steps: int = 300,
    learning_rate: float = 1e-3,
    tokens: int | None = None,
) -> Patch:
    """Fit the shared FF of every group to the outputs of the base's sublayers, by Adam.

    The loss is the squared error of each layer's output over its variance, summed over the layers
    of a group, on what the layer reads in the base. The learning rate falls to 0 as a cosine.

    Args:
        model: the base; left as it is.
        start: a patch whose groups are merged, such as `ffmerge.refitting.refit_groups` makes.
        batches: gives calibration data.
        steps, learning_rate: of Adam.
        tokens: how many to see; `find_tokens` if left out.

    Returns:
        A patch of the same plan.

    Invariant: with 0 steps it is the patch that it started from.
    """
    stacks = check_plan(model, start.plan)
    wanted = {(n, i) for n, groups in start.plan.groups.items() for g in groups for i in g.layers}
    first, data = peek(batches())
    activation, tensors = learn_activation(model, first), dict(start.tensors)
    read = collect_inputs(model, data, tokens or find_tokens(model), wanted)
    merged = find_stacks(apply_patch(model, start))
    for name, groups in start.plan.groups.items():
        for group in tqdm(groups, f"regress the {name}", unit="group"):
            stack, first = stacks[name], group.layers[0]
            inputs = [read[name, i] for i in group.layers]  # (n_tokens, d_model) each
            own = [stack.sublayers[i].read() for i in group.layers]
            targets = [compute_output(w, x, activation) for w, x in zip(own, inputs, strict=True)]
            shared = merged[name].sublayers[first].read()
            fitted = _fit(shared, inputs, targets, activation, steps, learning_rate)
            tensors |= stack.arrange(first, fitted)
    return Patch(start.plan, tensors)


@torch.enable_grad()
def _fit(
    shared: Weights,
    inputs: list[Tensor],
    targets: list[Tensor],
    activation: Callable[[Tensor], Tensor],
    steps: int,
    learning_rate: float,
) -> Weights:
    held = {key: w for key, w in vars(shared).items() if w is not None}
    # in float32: Adam's ε is 0 in float16
    values = {key: w.float().clone().requires_grad_() for key, w in held.items()}
    spread = [(y - y.mean(0)).square().sum(1).mean() for y in targets]
    optimizer = torch.optim.Adam(values.values(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        loss = torch.zeros((), device=inputs[0].device)
        for x, y, scale in zip(inputs, targets, spread, strict=True):
            rows = torch.randint(len(x), (BATCH,), generator=generator).to(x.device)
            error = compute_output(Weights(**values), x[rows], activation) - y[rows]
            loss = loss + error.square().sum(1).mean() / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Weights(**{key: value.detach().to(held[key].dtype) for key, value in values.items()})
