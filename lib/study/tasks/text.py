"""What the tasks on text share: tokenizers, untrained models, batches that keep their examples."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from study.metrics import Metric
from study.pretrained import load_pretrained_tokenizer
from study.sections import Base, Data
from study.tasks.data import load_split

IGNORED = -100  # the label of a position that neither the loss nor a metric counts


class TextBatch(dict[str, Tensor]):
    """Keyword arguments of the model's forward, and the examples that they were made from."""

    def __init__(self, tensors: dict[str, Tensor], examples: Sequence[dict] = ()) -> None:
        super().__init__(tensors)
        self.examples = examples


class TextTask:
    """What every task on text has: a tokenizer, and a model's folder to keep it in."""

    metric: Metric

    def __init__(self, base: Base, data: Data, folder: Path) -> None:
        """Args: base and data of the model's entry; folder of the base model, if it exists."""
        self.base, self.data, self.folder = base, data, folder

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's; trained on the training texts if there is none yet."""
        tokenizer = load_tokenizer(self.base, self.folder)
        return self.train_tokenizer() if tokenizer is None else tokenizer

    def train_tokenizer(self) -> PreTrainedTokenizerBase:
        """A tokenizer for a base model that is trained here."""
        raise FileNotFoundError(f"no tokenizer in {self.folder}; run notebook 1_base first")

    def column(self, name: str) -> str:
        """What the data call one of the task's columns."""
        return self.data.columns.get(name, name)

    def read_texts(self, split: str, *columns: str) -> Iterator[str]:
        """The texts of some columns of a split, row by row."""
        for row in load_split(self.data, split):
            yield from (row[self.column(name)] for name in columns)

    def save_processor(self, path: Path) -> None:
        """Write the tokenizer into a model's folder."""
        self.tokenizer.save_pretrained(path)


def load_tokenizer(base: Base, folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a base model, from its folder or its source; None before it is trained."""
    if (folder / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(folder)
    return None if base.is_trained_here else load_pretrained_tokenizer(base)


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


def pad(sequences: list[list[int]], value: int, left: bool = False) -> Tensor:
    """Sequences of tokens as one tensor, the shorter ones filled up on one side.

    Returns:
        (n_sequences, longest) int64.
    """
    longest = max(map(len, sequences))
    fill = [[value] * (longest - len(sequence)) for sequence in sequences]
    pairs = zip(fill, sequences, strict=True)
    return torch.tensor([f + s if left else s + f for f, s in pairs])


def pad_inputs(sequences: list[list[int]], value: int, left: bool = False) -> dict[str, Tensor]:
    """Sequences of tokens as the model's input_ids, and the mask that tells them from padding."""
    ones = [[1] * len(sequence) for sequence in sequences]
    return {"input_ids": pad(sequences, value, left), "attention_mask": pad(ones, 0, left)}


@torch.no_grad()
def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    most: list[int],
) -> list[str]:
    """What a decoder writes after each prompt, greedily, up to its end-of-text token.

    Args:
        model: a decoder.
        tokenizer: its own.
        prompts: tokens; padded on the left, so that all end where the model goes on.
        most: how many tokens it may write after each.

    Invariant: what is written after a prompt does not depend on the other prompts of a batch.
    """
    end = tokenizer.eos_token_id
    inputs = pad_inputs(prompts, end, left=True)
    output = model.generate(
        **{name: tensor.to(model.device) for name, tensor in inputs.items()},
        max_new_tokens=max(most),
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )
    new = output[:, inputs["input_ids"].shape[1] :].tolist()
    cut = [tokens[:n] for tokens, n in zip(new, most, strict=True)]
    return tokenizer.batch_decode(cut, skip_special_tokens=True)


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
