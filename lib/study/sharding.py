"""A model's weights shared out among processes: of every matrix each holds some rows (FSDP).

torch's `fully_shard` does it, not accelerate's FSDP: that finds what to wrap by names of classes,
while a shared sublayer is part of several layers, and on CPUs it does something else without a word
(DDP), so that nothing could be tested there.
"""

from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint import state_dict as distributed_state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

WHOLE = distributed_state.StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard_weights(model: nn.Module, device: torch.device) -> None:
    """Leave every process its share of a model's weights, in place; forward passes gather them.

    A layer's weights are gathered when it runs, and freed after it. What several layers share is
    gathered by itself, by each of them; everything outside of layers (embeddings, tied or not, and
    heads) once a pass.

    Args:
        model: a transformers model, merged or not, or a PeftModel around one; the same in all
            processes, whose group has started.
        device: of this process, where its shares go.

    Invariant: shared modules stay shared, and what the model computes does not change.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    layers = _find_layers(inner)
    for unit in [*_find_shared_units(layers), *layers]:
        fully_shard(unit, mesh=mesh)
    # Left alone, what is outside of layers would stay whole after a pass, and be loaded so.
    fully_shard(inner, mesh=mesh, reshard_after_forward=True)
    if hasattr(inner, "generate"):  # Marian's calls parts of the model, whose weights must be there
        register_fsdp_forward_method(inner, "generate")


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold shares of a model: all must then run it equally often."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def gather(tensor: Tensor) -> Tensor:
    """The whole of a tensor; if it is shared out, all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(whole: Tensor, into: Tensor) -> None:
    """Write a whole tensor into one that may be shared out; all processes must do it."""
    if isinstance(into, DTensor):
        whole = distribute_tensor(whole.to(into.device), into.device_mesh, into.placements)
    into.copy_(whole)


def save_optimizer(model: nn.Module, optimizer: Optimizer, path: Path, writes: bool) -> None:
    """Write the whole state of an optimizer of shared-out weights; all processes must do it.

    Args:
        model, optimizer: of this process.
        path: the file.
        writes: whether this process is the one that writes.
    """
    state = distributed_state.get_optimizer_state_dict(model, optimizer, options=WHOLE)
    if writes:
        torch.save(state, path)


def load_optimizer(model: nn.Module, optimizer: Optimizer, path: Path) -> None:
    """Read what `save_optimizer` wrote, in every process its share."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    distributed_state.set_optimizer_state_dict(model, optimizer, state, options=WHOLE)


def _find_layers(model: nn.Module) -> list[nn.Module]:
    """What lies in a model's lists of layers; of one list inside another the outer one."""
    layers, above = [], "\n"
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not path.startswith(above):
            above = f"{path}."
            layers += module
    return layers


def _find_shared_units(layers: list[nn.Module]) -> list[list[nn.Module]]:
    """The modules that hold a parameter which several layers reach, those of one together.

    One module that is shared is a unit, and so are the shells that adapters put around one matrix.
    """
    holders: dict[nn.Parameter, list[nn.Module]] = {}
    for layer in layers:
        for module in layer.modules():
            for parameter in module.parameters(recurse=False):
                holders.setdefault(parameter, []).append(module)
    shared = [tuple(dict.fromkeys(found)) for found in holders.values() if len(found) > 1]
    return [list(unit) for unit in dict.fromkeys(shared)]
