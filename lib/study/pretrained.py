"""Base models that other people trained: from the hub, or from a file inside a package."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from ffmerge.checkpoints import load
from ffmerge.cli.opening import open_gguf
from ffmerge.hub import asking_hub
from study.dino import open_dino
from study.packages import unpack_file
from study.sections import Base

LONGEST = 10**7  # what transformers puts where a tokenizer names none is far above


def load_pretrained(base: Base) -> PreTrainedModel:
    """The model itself, in float32 where it comes from a package: a GGUF file, or a DINOv2's ONNX.

    Args:
        base: with `hub`, or with `package` and `file`.

    Raises:
        ValueError: a package, a file or a model of the hub that cannot be had.
    """
    if base.hub:
        with asking_hub(base.hub, "model", base.revision):
            return load(base.hub, revision=base.revision)
    file = fetch_file(base)
    return open_dino(file) if file.suffix == ".onnx" else open_gguf(file).eval()


def load_pretrained_tokenizer(base: Base) -> Tokenizer:
    """Its tokenizer; `processor.context`, where it is given, is the longest sequence.

    Args:
        base: as in `load_pretrained`.

    Raises:
        ValueError: as `load_pretrained`, or nobody says how long a sequence may be.
    """
    if base.hub:
        with asking_hub(base.hub, "model", base.revision):
            tokenizer = AutoTokenizer.from_pretrained(base.hub, revision=base.revision)
    else:
        file = fetch_file(base)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.model_max_length = base.processor.get("context", tokenizer.model_max_length)
    if tokenizer.model_max_length > LONGEST:
        raise ValueError(
            f"the tokenizer of {base.hub or base.package} names no longest sequence; valid is an "
            "entry with base.processor.context, in tokens"
        )
    return tokenizer


def fetch_file(base: Base) -> Path:
    """The file of a base model that lies in a package."""
    return unpack_file(base.package, base.sha256, base.file)
