"""Numbers that are put on disk until they are read: what memory would not hold all at once."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ffmerge.activations import Batch, FindPlace, observe


def spill(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, mapped from a file without a name: the system reads what is touched.

    Args:
        tensors: on the CPU; let them go afterwards.

    Returns:
        Tensors of the same values. Their disk space, in the folder for temporary files (TMPDIR
        says another), is free again when they are gone.

    Raises:
        OSError: no room on that disk.
    """
    with tempfile.TemporaryDirectory(prefix="ffmerge-") as folder:
        path = Path(folder) / "spilled.safetensors"
        save_file(dict(tensors), path)
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}


class Kept:
    """What passed one place of every layer, in a file without a name: the model need not run again.

    Invariant: `observe` hands on what `ffmerge.activations.observe` did, bit by bit.
    """

    def __init__(
        self, model: nn.Module, batches: Iterable[Batch], tokens: int, place: FindPlace
    ) -> None:
        """Arguments as in `ffmerge.activations.observe`."""
        self.file = tempfile.TemporaryFile(prefix="ffmerge-")
        self.parts: list[tuple[str, int, torch.Size]] = []  # stack, layer, (n_tokens, width)

        def keep(number: int, name: str, i: int, x: Tensor) -> None:
            x.cpu().numpy().tofile(self.file)
            self.parts.append((name, i, x.shape))

        observe(model, batches, tokens, [place], keep)

    def observe(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        tokens: int,
        places: list[FindPlace],
        receive: Callable[[int, str, int, Tensor], None],
    ) -> None:
        """As `ffmerge.activations.observe`, of the same batches and place: nothing runs."""
        device = next(model.parameters()).device
        self.file.seek(0)
        for name, i, shape in self.parts:
            x = np.fromfile(self.file, np.float32, shape.numel())
            receive(0, name, i, torch.from_numpy(x).view(shape).to(device))


def has_room(size: int) -> bool:
    """Whether the folder for temporary files has twice as many bytes free as are wanted."""
    return shutil.disk_usage(tempfile.gettempdir()).free > 2 * size
