"""A model of somebody else, for a lesson and for tests: small, and no other stage has seen it."""

import ast
import json
import os
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ffmerge.cli.splits import collate, cut_blocks
from study.tasks.text import train_bytes

CONTEXT, BATCH = 128, 8
LEAST = 200  # characters of a docstring that is worth reading


def make_stranger(folder: Path, steps: int = 200, seed: int = 0) -> tuple[Path, Path]:
    """Train a Llama on docstrings of Python's standard library, as somebody else might have.

    Args:
        folder: to write into.
        steps: of training, on some 1,000 tokens each; 200 are less than a minute.
        seed: of weights and of the order.

    Returns:
        The model's folder, and a JSONL file of docstrings that it was not trained on.
    """
    texts = read_docstrings()
    own = texts[len(texts) // 4 :]
    tokenizer = train_bytes(own, size=1024, context=CONTEXT)
    blocks = list(cut_blocks(own, tokenizer, CONTEXT, labelled=True))
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=8,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        drawn = torch.randint(len(blocks), (BATCH,)).tolist()
        model(**collate([blocks[i] for i in drawn], 0)).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "theirs")
    tokenizer.save_pretrained(folder / "theirs")
    notes = folder / "notes.jsonl"
    rows = (json.dumps({"text": text}) for text in texts[: len(texts) // 4])
    notes.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "theirs", notes


def read_docstrings() -> list[str]:
    """The longer docstrings of Python's standard library, module by module."""
    texts = []
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                texts.append(ast.get_docstring(node) or "")
    return [text for text in texts if len(text) >= LEAST]
