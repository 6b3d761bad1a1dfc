"""Translation (paper, Section 4.3): BLEU and chrF of sacrebleu."""

from collections.abc import Iterable

import torch
from sacrebleu.metrics import BLEU, CHRF
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from study.metrics import Metric
from study.tasks import Score
from study.tasks.data import load_split
from study.tasks.text import (
    IGNORED,
    TextBatch,
    TextTask,
    new_config,
    pad,
    pad_inputs,
    train_subwords,
)


class Task(TextTask):
    """Translation with an encoder-decoder."""

    metric = Metric("BLEU")

    def train_tokenizer(self) -> PreTrainedTokenizerBase:
        """A tokenizer of both sides of the training pairs."""
        return train_subwords(self.read_texts("train", "source", "target"), **self.base.processor)

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
        return rows.add_column("length", list(map(len, rows[self.column("source")])))

    def collate(self, examples: list[dict]) -> TextBatch:
        """Sources, padded; targets as labels, their padding marked as such."""
        sources = self._encode([example[self.column("source")] for example in examples])
        targets = self._encode(text_target=[example[self.column("target")] for example in examples])
        tensors = pad_inputs(sources, self.tokenizer.pad_token_id)
        return TextBatch(tensors | {"labels": pad(targets, IGNORED)}, examples)

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, batches: Iterable[TextBatch]) -> Score:
        """BLEU and chrF of the translations that the model's own generation settings give."""
        model.eval()
        answers = {"source": [], "reference": [], "translation": []}
        for batch in tqdm(batches, desc="translate", unit="batch", delay=5, leave=False):
            inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
            output = model.generate(**inputs)
            answers["source"] += [example[self.column("source")] for example in batch.examples]
            answers["reference"] += [example[self.column("target")] for example in batch.examples]
            answers["translation"] += self.tokenizer.batch_decode(output, skip_special_tokens=True)
        values, signatures = {}, {}
        for metric, scorer in ((self.metric, BLEU()), (Metric("chrF"), CHRF())):
            score = scorer.corpus_score(answers["translation"], [answers["reference"]])
            values[metric] = score.score
            signatures[metric.name] = str(scorer.get_signature())
        return Score(values, len(answers["source"]), signatures, answers)

    def _encode(self, *texts: list[str], **targets: list[str]) -> list[list[int]]:
        longest = self.tokenizer.model_max_length
        encoded = self.tokenizer(*texts, **targets, truncation=True, max_length=longest)
        return encoded["input_ids"]
