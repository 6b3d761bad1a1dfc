"""Translation (paper, Section 4.2): BLEU and chrF of sacrebleu."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from sacrebleu.metrics import BLEU, CHRF
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from ffmerge.config import Base, Data
from ffmerge.tasks import Score
from ffmerge.tasks.text import (
    IGNORED,
    TextBatch,
    load_split,
    load_tokenizer,
    new_config,
    pad,
    train_subwords,
)


class Task:
    """Translation with an encoder-decoder."""

    metric = "BLEU"
    unit = ""
    higher_is_better = True

    def __init__(self, base: Base, data: Data, folder: Path) -> None:
        """Args: base and data of the model's entry; folder of the base model, if it exists."""
        self.base, self.data, self.folder = base, data, folder
        self.source, self.target = (data.columns.get(name, name) for name in ("source", "target"))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's; trained on both sides of the training pairs if there is none yet."""
        tokenizer = load_tokenizer(self.base, self.folder)
        if tokenizer is None:
            rows = load_split(self.data, "train", None, 0)
            texts = (row[side] for row in rows for side in (self.source, self.target))
            tokenizer = train_subwords(texts, **self.base.processor)
        return tokenizer

    def new_model(self) -> PreTrainedModel:
        """An untrained encoder-decoder of the entry's architecture; it decodes greedily."""
        start = self.tokenizer.pad_token_id
        config = new_config(
            self.base, self.tokenizer, decoder_start_token_id=start, forced_eos_token_id=None
        )
        model = AutoModelForSeq2SeqLM.from_config(config)
        model.generation_config.max_new_tokens = self.tokenizer.model_max_length
        return model

    def dataset(self, split: str, limit: int | None = None, seed: int = 0) -> Iterable:
        """The pairs of a split; those for training with their length, to batch alike ones."""
        rows = load_split(self.data, split, limit, seed)
        if split != "train" or self.data.streaming:
            return rows
        return rows.add_column("length", list(map(len, rows[self.source])))

    def collate(self, examples: list[dict]) -> TextBatch:
        """Sources, padded; targets as labels, their padding marked as such."""
        sources = self._encode([example[self.source] for example in examples])
        targets = self._encode(text_target=[example[self.target] for example in examples])
        tensors = {
            "input_ids": pad(sources, self.tokenizer.pad_token_id),
            "attention_mask": pad([[1] * len(tokens) for tokens in sources], 0),
            "labels": pad(targets, IGNORED),
        }
        return TextBatch(tensors, examples)

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, batches: Iterable[TextBatch]) -> Score:
        """BLEU and chrF of the translations that the model's own generation settings give."""
        model.eval()
        answers = {"source": [], "reference": [], "translation": []}
        for batch in tqdm(batches, desc="translate", unit="batch", delay=5, leave=False):
            inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
            output = model.generate(**inputs)
            answers["source"] += [example[self.source] for example in batch.examples]
            answers["reference"] += [example[self.target] for example in batch.examples]
            answers["translation"] += self.tokenizer.batch_decode(output, skip_special_tokens=True)
        values, signatures = {}, {}
        for name, metric in ((self.metric, BLEU()), ("chrF", CHRF())):
            score = metric.corpus_score(answers["translation"], [answers["reference"]])
            values[name] = score.score
            signatures[name] = str(metric.get_signature())
        return Score(values, len(answers["source"]), signatures, answers)

    def save_processor(self, path: Path) -> None:
        """Write the tokenizer into a model's folder."""
        self.tokenizer.save_pretrained(path)

    def _encode(self, *texts: list[str], **targets: list[str]) -> list[list[int]]:
        longest = self.tokenizer.model_max_length
        encoded = self.tokenizer(*texts, **targets, truncation=True, max_length=longest)
        return encoded["input_ids"]
