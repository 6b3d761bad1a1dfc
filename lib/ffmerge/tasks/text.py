"""What the tasks on text share: tokenizers, untrained models, batches that keep their examples."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ffmerge.config import Base, Data

IGNORED = -100  # the label of a position that neither the loss nor a metric counts


class TextBatch(dict[str, Tensor]):
    """Keyword arguments of the model's forward, and the examples that they were made from."""

    def __init__(self, tensors: dict[str, Tensor], examples: Sequence[dict] = ()) -> None:
        super().__init__(tensors)
        self.examples = examples


def load_tokenizer(base: Base, folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a base model, from its folder or the hub; None before it is trained."""
    if (folder / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(folder)
    if base.hub:
        return AutoTokenizer.from_pretrained(base.hub, revision=base.revision)
    return None


def train_bytes(texts: Iterable[str], size: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, GPT-2's kind; the end of a text is its only special token.

    Args:
        texts: what it is trained on.
        size: of the vocabulary.
        context: the longest sequence that the model will see, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, context, eos_token=end, bos_token=end, pad_token=end)


def train_subwords(texts: Iterable[str], size: int, context: int) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer for both languages of a translator; every sequence ends in `</s>`.

    Args:
        texts, size, context: as in `train_bytes`.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", special.index("</s>"))]
    )
    return _wrap(tokenizer, context, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def new_config(base: Base, tokenizer: PreTrainedTokenizerBase, **settings) -> PreTrainedConfig:
    """The configuration of an untrained model: `architecture`, and what the tokenizer decides.

    Args:
        base: its architecture names the transformers `model_type`.
        tokenizer: decides the vocabulary and the special tokens.
        settings: more of them.
    """
    return AutoConfig.for_model(
        **base.architecture,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )


def load_split(data: Data, split: str, limit: int | None, seed: int) -> Dataset:
    """The rows of "train", "validation" or "test", at most `limit`; streamed if the entry says so.

    Args:
        data: the model's entry.
        split, limit, seed: as in `Task.dataset`.
    """
    rows = load_dataset(
        data.path,
        data.name,
        split=data.splits[split],
        revision=data.revision,
        streaming=data.streaming,
    )
    if data.streaming and split == "train":  # Trainer shuffles only what it can index
        rows = rows.shuffle(seed=seed, buffer_size=10_000)
    return rows if limit is None else rows.take(limit)


def pad(sequences: list[list[int]], value: int, left: bool = False) -> Tensor:
    """Sequences of tokens as one tensor, the shorter ones filled up on one side.

    Returns:
        (n_sequences, longest) int64.
    """
    longest = max(map(len, sequences))
    fill = [[value] * (longest - len(sequence)) for sequence in sequences]
    pairs = zip(fill, sequences, strict=True)
    return torch.tensor([f + s if left else s + f for f, s in pairs])


def slide_windows(tokens: list[int], context: int) -> Iterator[dict[str, list[int]]]:
    """Windows over a text, each half a context further; only a window's new tokens are labelled.

    Args:
        tokens: the text.
        context: length of a window, in tokens.

    Invariant: every token but the first is predicted once, with half a context or more before it
    (apart from those of the first window).
    """
    stride = context // 2
    for start in range(0, max(1, len(tokens) - context + stride), stride):
        window = tokens[start : start + context]
        seen = context - stride if start else 0
        yield {"input_ids": window, "labels": [IGNORED] * seen + window[seen:]}


def _wrap(tokenizer: Tokenizer, context: int, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **special,
    )
