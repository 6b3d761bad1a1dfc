"""Opening a stranger's model: a hub id, a folder or a GGUF file, with what reads its data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_utils import BaseImageProcessor

from ffmerge.checkpoints import load
from ffmerge.hub import asking_hub
from ffmerge.saving.saveable import check_saveable

Reads = Literal["text", "pairs", "images"]


@dataclass(frozen=True)
class Opened:
    """A model and what turns its data into batches.

    Attributes:
        model: in float32, in evaluation mode.
        processor: its tokenizer, or what prepares images.
        reads: "text"; "pairs" of a source and a target text (encoder-decoders); or "images".
        dtype: of its checkpoint, which its compressed copy is saved in.
    """

    model: PreTrainedModel
    processor: PreTrainedTokenizerBase | BaseImageProcessor
    reads: Reads
    dtype: torch.dtype

    @property
    def has_loss(self) -> bool:
        """Whether text alone gives a loss: it predicts tokens one by one."""
        return self.reads == "pairs" or (self.reads == "text" and self.model.can_generate())


def open_model(source: str) -> Opened:
    """Open a model and its tokenizer or image processor.

    Args:
        source: a folder, a GGUF file, or a hub id. Code that comes with a model is never run.

    Raises:
        ValueError: it cannot be opened, or reads neither text nor images.
    """
    path = Path(source)
    is_gguf = path.suffix.lower() == ".gguf"
    try:
        if is_gguf:
            model = open_gguf(path)
        else:
            with asking_hub(source, "model"):
                model = load(path if path.exists() else source)
    except Exception as error:
        if isinstance(error, ValueError) and not is_gguf:
            raise  # it says what is wrong by itself
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"MODEL {source!r} cannot be opened ({reason}); valid are a hub id, the folder of a "
            "transformers model, or a .gguf file (with the package gguf)"
        ) from None
    check_saveable(model)
    reads, dtype = _find_input(model), model.dtype
    return Opened(model.float().eval(), _open_processor(source, reads, is_gguf), reads, dtype)


def open_gguf(path: Path) -> PreTrainedModel:
    """A GGUF file's quantized weights as plain numbers; the model that is saved is a usual one.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name}")
    return AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )


def _find_input(model: PreTrainedModel) -> Reads:
    if model.main_input_name == "pixel_values":
        return "images"
    if model.main_input_name != "input_ids":
        raise ValueError(
            f"model {type(model).__name__} reads {model.main_input_name}; valid are models that "
            "read text or images"
        )
    return "pairs" if getattr(model.config, "is_encoder_decoder", False) else "text"


def _open_processor(
    source: str, reads: Reads, is_gguf: bool
) -> PreTrainedTokenizerBase | BaseImageProcessor:
    what, path = "image processor" if reads == "images" else "tokenizer", Path(source)
    try:
        if reads == "images":
            return AutoImageProcessor.from_pretrained(source)
        if is_gguf:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source)
        if tokenizer("some text", add_special_tokens=False)["input_ids"]:
            return tokenizer  # without files, transformers may give one that knows no token
    except (OSError, ValueError, KeyError):
        pass
    raise ValueError(
        f"MODEL {source!r} has no {what} that transformers can open; valid is a model that was "
        f"saved with its {what}"
    )
