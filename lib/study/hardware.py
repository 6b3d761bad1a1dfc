"""What this machine computes well: the device, and the precision of training that suits it."""

import platform
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "float16"]


def find_device() -> str:
    """Where models run: the first GPU, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_bfloat16() -> bool:
    """Whether products in bfloat16 are fast here.

    On a CPU without AVX512-BF16 or AMX they take about twenty times as long as in float32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def resolve_precision(asked: str) -> Precision:
    """The precision of training: what params.yaml asks for, or with "auto" what is fast here.

    Raises:
        ValueError: float16 without a GPU, as only there its losses are scaled.
    """
    if asked == "float16" and not torch.cuda.is_available():
        raise ValueError(
            "precision is float16, but there is no GPU here, which its loss scaling needs; valid "
            "are auto, float32, bfloat16"
        )
    if asked != "auto":
        return asked
    return "bfloat16" if has_bfloat16() else "float32"


def describe_hardware() -> str:
    """What decides precision and speed, in a few words: a GPU's name, or the kind of CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {'with' if has_bfloat16() else 'without'} bfloat16"
