"""Multiple choice without examples, in the manner of MMLU: the likeliest ending is the answer."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from transformers import PreTrainedModel

from ffmerge.alignment import to_exact
from study.metrics import Metric
from study.tasks import Score
from study.tasks.data import load_split
from study.tasks.sharing import score_batches
from study.tasks.text import IGNORED, TextBatch, TextTask, pad, pad_inputs


class Task(TextTask):
    """Questions, the start of a sentence each, with several endings, one of them right."""

    metric = Metric("accuracy (choices)", "%")

    def dataset(self, split: str, limit: int | None = None, seed: int = 0) -> Iterable:
        """Questions, each with the tokens of all its endings."""
        return [self._read(row) for row in load_split(self.data, split, limit, seed)]

    def collate(self, examples: list[dict]) -> TextBatch:
        """All endings of all questions, padded on the right; only an ending's tokens are labels."""
        endings = [ending for example in examples for ending in example["endings"]]
        tensors = pad_inputs([x["input_ids"] for x in endings], self.tokenizer.pad_token_id or 0)
        return TextBatch(
            tensors | {"labels": pad([x["labels"] for x in endings], IGNORED)}, examples
        )

    def evaluate(self, model: PreTrainedModel, batches: Iterable[TextBatch]) -> Score:
        """The percentage of questions whose right ending is the likeliest of all."""

        def choose(batch: TextBatch) -> list[tuple[int, int]]:
            scores, pairs = score_endings(model, batch), []
            for example in batch.examples:
                n = len(example["endings"])
                pairs.append((int(torch.stack(scores[:n]).argmax()), example["answer"]))
                scores = scores[n:]
            return pairs

        pairs = chain.from_iterable(score_batches(model, batches, choose, "choices"))
        chosen, right = zip(*pairs, strict=True)
        hits = sum(a == b for a, b in zip(chosen, right, strict=True))
        answers = {"expected": list(map(str, right)), "chosen": list(map(str, chosen))}
        return Score({self.metric: 100 * hits / len(right)}, len(right), answers=answers)

    def _read(self, row: dict) -> dict:
        start = self.tokenizer(row[self.column("question")])["input_ids"]
        endings = []
        for choice in row[self.column("choices")]:
            end = self.tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            labels = [IGNORED] * len(start) + end
            endings.append({"input_ids": start + end, "labels": labels})
        return {"endings": endings, "answer": row[self.column("answer")]}


def score_endings(model: PreTrainedModel, batch: TextBatch) -> Sequence[torch.Tensor]:
    """The log-likelihood of every labelled ending, summed over its tokens, in nats.

    Args:
        model: a decoder, in evaluation mode.
        batch: as `Task.collate` gives it.

    Returns:
        One number for each row of the batch.
    """
    inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
    logits = model(**inputs).logits[:, :-1].float()  # (n_endings, length - 1, vocabulary)
    labels = batch["labels"][:, 1:].to(model.device)
    found = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return list(to_exact(found.masked_fill(labels == IGNORED, 0)).sum(1).cpu())
