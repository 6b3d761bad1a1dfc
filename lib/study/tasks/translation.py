"""Translation (paper, Section 4.3): BLEU and chrF of sacrebleu."""

from collections.abc import Iterable
from itertools import chain

from sacrebleu.metrics import BLEU, CHRF
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

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

    def evaluate(self, model: PreTrainedModel, batches: Iterable[TextBatch]) -> Score:
        """BLEU and chrF of the translations that the model's own generation settings give."""

        def translate(batch: TextBatch) -> list[tuple[str, str, str]]:
            inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
            output = self.tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
            source, target = self.column("source"), self.column("target")
            pairs = ((example[source], example[target]) for example in batch.examples)
            return [(*pair, text) for pair, text in zip(pairs, output, strict=True)]

        lines = chain.from_iterable(score_batches(model, batches, translate, "translate"))
        names = ("source", "reference", "translation")
        answers = dict(zip(names, map(list, zip(*lines, strict=True)), strict=True))
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
