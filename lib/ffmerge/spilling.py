"""Numbers that are put on disk until they are read: what memory would not hold all at once."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


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
