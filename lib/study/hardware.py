"""What this machine computes well: the device, and the precision of training that suits it."""

import platform
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from study import config

Precision = Literal["float32", "bfloat16", "float16"]


def find_device() -> str:
    """Where models run: where params.yaml says, or else on the first GPU, Apple's, or the CPU.

    Raises:
        ValueError: params.yaml asks for a device that is not here.
    """
    there = {"cuda": torch.cuda, "mps": torch.backends.mps}
    here = [*(name for name, kind in there.items() if kind.is_available()), "cpu"]
    try:
        asked = _read_choice(config.find_root())
    except FileNotFoundError:  # outside the repository nobody has chosen
        asked = "auto"
    if asked not in ("auto", *here):
        raise ValueError(f"device is {asked}, which is not here; valid are auto, {', '.join(here)}")
    return here[0] if asked == "auto" else asked


@cache
def _read_choice(root: Path) -> str:
    return config.load_params(root).device


def has_bfloat16() -> bool:
    """Whether products in bfloat16 are fast here.

    On a CPU without AVX512-BF16 or AMX they take about twenty times as long as in float32.
    """
    device = find_device()
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def resolve_precision(asked: str) -> Precision:
    """The precision of training: what params.yaml asks for, or with "auto" what is fast here.

    Raises:
        ValueError: float16 without a GPU, as only there its losses are scaled.
    """
    if asked == "float16" and find_device() != "cuda":
        raise ValueError(
            "precision is float16, but there is no GPU here, which its loss scaling needs; valid "
            "are auto, float32, bfloat16"
        )
    if asked != "auto":
        return asked
    return "bfloat16" if has_bfloat16() else "float32"


def describe_hardware() -> str:
    """What decides precision and speed, in a few words: a GPU's name, or the kind of CPU."""
    device = find_device()
    if device == "cuda":
        return torch.cuda.get_device_name()
    if device == "mps":
        return "Apple GPU"
    return f"CPU {'with' if has_bfloat16() else 'without'} bfloat16"
