"""Language modelling (paper, Section 4.1): perplexity per token."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ffmerge.alignment import to_exact
from study.metrics import Metric
from study.tasks import Score
from study.tasks.data import load_split
from study.tasks.sharing import score_batches
from study.tasks.text import (
    IGNORED,
    TextBatch,
    TextTask,
    new_config,
    pad,
    pad_inputs,
    slide_windows,
    train_bytes,
)

WINDOW_MEANS = Metric("perplexity (window means)", "per token", "lower")
PART = 1024  # tokens: what a CPU's caches hold; batches of 8,192 take up to twice as long


class Task(TextTask):
    """Language modelling with a decoder."""

    metric = Metric("perplexity", "per token", "lower")

    def train_tokenizer(self) -> PreTrainedTokenizerBase:
        """A byte-level tokenizer of the training texts."""
        return train_bytes(self.read_texts("train", "text"), **self.base.processor)

    @property
    def context(self) -> int:
        """Length of a training block and of a window, in tokens."""
        return self.tokenizer.model_max_length

    def new_model(self) -> PreTrainedModel:
        """An untrained decoder of the entry's architecture."""
        bos = self.tokenizer.bos_token_id
        return AutoModelForCausalLM.from_config(
            new_config(self.base, self.tokenizer, bos_token_id=bos)
        )

    def dataset(self, split: str, limit: int | None = None, seed: int = 0) -> Iterable:
        """Training blocks of one context each, or the windows that slide over a held-out text.

        Texts are joined, an end-of-text token (or the entry's separator) between them.
        """
        if split == "train":
            rows = load_split(self.data, split, None, seed)
            columns = rows.column_names
            same = {} if self.data.streaming else {"new_fingerprint": self._fingerprint(rows)}
            blocks = rows.map(self._pack, batched=True, remove_columns=columns, **same)
            return blocks if limit is None else blocks.take(limit)
        texts = self.read_texts(split, "text")
        needed = None if limit is None else (limit + 1) * self.context
        tokens = list(islice(self._join(texts), needed))
        return list(islice(slide_windows(tokens, self.context), limit))

    def collate(self, examples: list[dict]) -> TextBatch:
        """Blocks or windows, padded on the right; in training blocks every token is a label."""
        inputs = [example["input_ids"] for example in examples]
        labels = [example.get("labels", example["input_ids"]) for example in examples]
        tensors = pad_inputs(inputs, self.tokenizer.pad_token_id or 0)
        return TextBatch(tensors | {"labels": pad(labels, IGNORED)}, examples)

    def evaluate(self, model: PreTrainedModel, batches: Iterable[TextBatch]) -> Score:
        """Perplexity with a sliding window, each token weighing the same.

        The paper's release exponentiates the mean of the windows' mean losses instead, where the
        tokens of a short last window weigh more; that is the second value.
        """

        def measure_losses(tokens: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
            logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
            wanted = labels[:, 1:]  # (n_windows, context - 1)
            losses = cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
            return losses.view(wanted.shape)

        def measure(batch: TextBatch) -> tuple[float, int, list[float]]:
            n_windows, context = batch["input_ids"].shape
            at_once = max(1, PART // context) if model.device.type == "cpu" else n_windows
            names = ("input_ids", "attention_mask", "labels")
            parts = zip(
                *(batch[name].to(model.device).split(at_once) for name in names), strict=True
            )
            losses = torch.cat([measure_losses(*part) for part in parts])
            counts = (batch["labels"][:, 1:] != IGNORED).sum(1).to(model.device)
            means = (losses.sum(1) / counts).tolist()
            return float(to_exact(losses).sum()), int(counts.sum()), means

        found = score_batches(model, batches, measure, "evaluate")
        totals, counts, parts = zip(*found, strict=True)
        total, n, means = sum(totals), sum(counts), list(chain.from_iterable(parts))
        values = {
            self.metric: _exp(total / n),
            WINDOW_MEANS: _exp(sum(means) / len(means)),
        }
        return Score(values, len(means), answers={"loss": [f"{loss:.6f}" for loss in means]})

    def _join(self, texts: Iterable[str]) -> Iterator[int]:
        """The tokens of texts, one after the other, with what separates them."""
        separator = self._separator()
        for text in texts:
            yield from self.tokenizer(text, verbose=False)["input_ids"]
            yield from separator

    def _separator(self) -> list[int]:
        if self.data.separator is None:
            return [self.tokenizer.eos_token_id]
        return self.tokenizer(self.data.separator)["input_ids"]

    def _pack(self, rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        """Texts, joined and cut into blocks; the rest of a chunk of texts is left out."""
        tokens, separator = [], self._separator()
        for ids in self.tokenizer(rows[self.column("text")], verbose=False)["input_ids"]:
            tokens += ids + separator
        cuts = range(0, len(tokens) - self.context + 1, self.context)
        return {"input_ids": [tokens[i : i + self.context] for i in cuts]}

    def _fingerprint(self, rows: Dataset) -> str:
        """Names the packed blocks in the cache of `datasets`: same texts, same tokenizer."""
        parts = (
            rows._fingerprint,
            self.tokenizer.backend_tokenizer.to_str(),
            str((self.context, self._separator(), self.column("text"))),
        )
        return hashlib.md5("".join(parts).encode()).hexdigest()


def _exp(loss: float) -> float:
    """Perplexity of a mean loss in nats; beyond the largest float it is infinite."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
