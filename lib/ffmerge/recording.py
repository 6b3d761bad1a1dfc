"""Features on disk: recorded row by row, read sublayer by sublayer, so that memory holds few.

GPT-2 Large's 36 sublayers of 5,120 neurons give 14.7 GB on 20,000 tokens; one of them, 0.4 GB.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ffmerge.activations import (
    Batch,
    FindPlace,
    check_features,
    find_attention_outputs,
    find_features,
    find_outputs,
    observe,
    warn_of_few,
)
from ffmerge.files import remove, replacing

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Recorded(Sequence[Tensor]):
    """What was recorded of the sublayers of one stack; each is read when it is asked for.

    Invariant: nothing is kept, so that memory holds only what its reader holds.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        """Args: the file; the names of its tensors, one for each sublayer in order."""
        self.path, self.names = path, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(self.names[i])  # (n_tokens, width)

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and width of the first sublayer, without reading it."""
        with safe_open(self.path, "pt") as file:
            return tuple(file.get_slice(self.names[0]).get_shape())


def record_features(
    model: nn.Module,
    batches: Iterable[Batch],
    path: Path,
    tokens: int = 10_000,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Recorded]:
    """Write the features of every FF sublayer to a file, as they come (Section 3.3).

    Args:
        model, batches, tokens: as in `ffmerge.collect_features`.
        path: of the safetensors file; replaced if it exists.
        dtype: they are kept in; of float16 and bfloat16 half as much, rounded.

    Returns:
        What `open_features` reads again: [stack][i] (n_tokens, d_ff).

    Raises:
        ValueError: as `collect_features`; another dtype, or a feature that it cannot hold.

    Invariant: in float32 the file is the one that `collect_features` and safetensors would write.
    """
    _record(model, batches, path, tokens, {"": find_features}, dtype)
    recorded = open_features(path)
    for name, layers in recorded.items():
        warn_of_few(name, *layers.shape)
    return recorded


def record_outputs(
    model: nn.Module, batches: Iterable[Batch], path: Path, tokens: int = 10_000
) -> tuple[dict[str, Recorded], dict[str, Recorded]]:
    """Write the outputs of every FF and self-attention sublayer to a file (Section 5.6).

    Args:
        model, batches, path, tokens: as in `record_features`.

    Returns:
        FF outputs and attention outputs, each [stack][i] (n_tokens, d_model).
    """
    kinds = {"ff.": find_outputs, "attention.": find_attention_outputs}
    _record(model, batches, path, tokens, kinds, torch.float32)
    ff, attention = (open_features(path, kind) for kind in kinds)
    return ff, attention


def open_features(path: Path, kind: str = "") -> dict[str, Recorded]:
    """Read what `record_features` wrote, each sublayer when it is asked for.

    Args:
        path: of the file.
        kind: what the names start with.
    """
    with safe_open(path, "pt") as file:
        names = [name.removeprefix(kind) for name in file.keys() if name.startswith(kind)]
    depths: dict[str, int] = {}
    for stack, _, i in sorted(name.rpartition(".") for name in names):
        depths[stack] = max(depths.get(stack, 0), int(i) + 1)
    stacks = sorted(depths, key=lambda stack: stack != "encoder")  # it runs first
    return {s: Recorded(path, [f"{kind}{s}.{i}" for i in range(depths[s])]) for s in stacks}


def _record(
    model: nn.Module,
    batches: Iterable[Batch],
    path: Path,
    tokens: int,
    places: Mapping[str, FindPlace],
    dtype: torch.dtype,
) -> None:
    """Write what is seen at each place, one file a sublayer, and join these at the end.

    How many rows there will be is known only then.
    """
    if dtype not in DTYPES:
        valid = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise ValueError(f"dtype is {str(dtype).removeprefix('torch.')}; valid are {valid}")
    kinds, shapes = list(places), {}
    parts = path.with_name(path.name + ".parts")
    remove(parts)  # what a killed run has left
    parts.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {}

            def keep(number: int, part: str, i: int, rows: Tensor) -> None:
                name, rows = f"{kinds[number]}{part}.{i}", rows.to("cpu", dtype)
                check_features(rows, part, i)
                if name not in files:
                    files[name] = stack.enter_context(open(parts / name, "wb"))
                n, width = shapes.get(name, (0, rows.shape[1]))
                shapes[name] = (n + len(rows), width)
                files[name].write(rows.contiguous().view(torch.uint8).numpy())

            observe(model, batches, tokens, list(places.values()), keep)
        with replacing(path) as partial:
            _join(parts, shapes, dtype, partial)
    finally:
        remove(parts)


def _join(
    parts: Path, shapes: Mapping[str, tuple[int, int]], dtype: torch.dtype, path: Path
) -> None:
    """One safetensors file of many files of plain numbers, each removed once it is copied."""
    header, start = {}, 0
    for name in sorted(shapes):
        n, width = shapes[name]
        end = start + n * width * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": [n, width], "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of eight bytes
    with open(path, "wb") as whole:
        whole.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(shapes):
            with open(parts / name, "rb") as part:
                shutil.copyfileobj(part, whole, 2**20)
            (parts / name).unlink()
