"""What a stranger brings: a folder with a model and its tokenizer, some text, some pictures."""

import json
import random
from pathlib import Path

from families import VOCABULARY, make_model
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessorPil

WORDS = [f"word{i}" for i in range(VOCABULARY - 3)]


def make_tokenizer():
    """One token a word."""
    known = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_stranger(family: str, folder: Path) -> Path:
    """A random model of the family, as `save_pretrained` leaves it."""
    make_model(family).save_pretrained(folder)
    if family == "vit":
        size = {"height": 8, "width": 8}
        processor = ViTImageProcessorPil(size=size, image_mean=[0.5], image_std=[0.5])
    else:
        processor = make_tokenizer()
    processor.save_pretrained(folder)
    return folder


def make_text(n_words: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


def write_text(path: Path, n_words: int = 1500) -> Path:
    path.write_text(make_text(n_words))
    return path


def write_rows(path: Path, n: int = 60, **columns: int) -> Path:
    """JSONL: columns of so many words each."""
    rows = [{c: make_text(k, seed=i) for c, k in columns.items()} for i in range(n)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def write_images(folder: Path, n: int = 60) -> Path:
    """Pictures of noise, in two subfolders."""
    for i in range(n):
        path = folder / ("even", "odd")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("L", (12, 12), random.Random(i).randbytes(144)).save(path)
    return folder


def write_data(family: str, folder: Path) -> list[str]:
    """Data that the family reads, and the options that say so."""
    if family == "vit":
        return ["--data", str(write_images(folder / "pictures"))]
    if family == "marian":
        rows = write_rows(folder / "pairs.jsonl", zh=12, en=10)
        return ["--data", str(rows), "--column", "zh", "--target", "en"]
    return ["--data", str(write_text(folder / "notes.txt")), "--context", "16"]
