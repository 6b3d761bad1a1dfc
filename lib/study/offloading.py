"""What travels when a model's weights do not fit: bytes moved in a forward pass, shared or not.

The picture: weights lie elsewhere (in main memory, on disk) and come to where they are used when
their module runs; one layer's are there at a time. A sublayer that several layers share stays.
"""

import torch
from torch import nn

from ffmerge.activations import Batch, run_batch
from ffmerge.memory import count_bytes
from ffmerge.saving.sharing import find_shared_modules
from ffmerge.sublayers import find_stacks, unwrap


@torch.no_grad()
def count_moved(model: nn.Module, batch: Batch) -> int:
    """Bytes that a forward pass moves: a module's own weights whenever it runs, shared ones once.

    Sublayers that layers share are moved the first time and stay. Weights that two modules hold in
    common (an embedding that is the head too) are moved for each of them: they are far apart.

    Args:
        model: any model that `find_stacks` knows; left in evaluation mode.
        batch: keyword arguments for its forward.

    Invariant: tied, a group of k sublayers moves k - 1 sublayers less than untied.
    """
    model = unwrap(model).eval()
    shared, total, stay = _list_shared(model), 0, set()

    def move(module: nn.Module, args: tuple) -> None:
        nonlocal total
        if module not in stay:
            total += _count(module)
        if module in shared:
            stay.add(module)

    held = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [module.register_forward_pre_hook(move) for module in held]
    try:
        run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return total


def count_resident(model: nn.Module) -> int:
    """Bytes that are there at the most: the largest layer's own, and all that layers share.

    Args:
        model: any model that `find_stacks` knows.
    """
    shared = _list_shared(model)
    layers = [layer for stack in find_stacks(model).values() for layer in stack.layers]
    own = [_count(*(m for m in layer.modules() if m not in shared)) for layer in layers]
    return max(own) + _count(*shared)


def _count(*modules: nn.Module) -> int:
    return sum(count_bytes(module.parameters(recurse=False)) for module in modules)


def _list_shared(model: nn.Module) -> set[nn.Module]:
    """The modules with weights that stand under several names."""
    model = unwrap(model)
    return {model.get_submodule(names[0]) for names in find_shared_modules(model)}
