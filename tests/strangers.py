"""What a stranger brings: a folder with a model and its tokenizer, some text, some pictures."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
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


def write_gguf(path: Path, layers: int = 4, d_model: int = 16, d_ff: int = 24) -> Path:
    """A random Llama with a byte-level tokenizer, as llama.cpp keeps one."""
    gguf = pytest.importorskip("gguf")
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<|endoftext|>"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(d_model)
    writer.add_feed_forward_length(d_ff)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_bos_token_id(len(tokens) - 1)
    draw = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", draw.normal(0, 0.2, shape).astype(np.float32))

    add("token_embd", len(tokens), d_model)
    add("output_norm", d_model)
    for i in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}", d_model, d_model)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{i}.{name}", d_ff, d_model)
        add(f"blk.{i}.ffn_down", d_model, d_ff)
        add(f"blk.{i}.attn_norm", d_model)
        add(f"blk.{i}.ffn_norm", d_model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
