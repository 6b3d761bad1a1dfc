"""Summaries of dialogues (paper, Sections 4.5 and 5.5): ROUGE, and slots that are right.

A decoder is asked `Summarize the following:`, as in the paper's release; only the summary counts
in the loss.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from rouge_score.rouge_scorer import RougeScorer
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ffmerge.config import Base, Data
from ffmerge.tasks import Score
from ffmerge.tasks.text import IGNORED, TextBatch, load_split, load_tokenizer, pad

PROMPT = "Summarize the following:\n{dialogue}\nSummary:"
KINDS = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-Lsum": "rougeLsum"}


class Task:
    """Dialogue summaries with a decoder that was pretrained on something else."""

    metric = "ROUGE-1"
    unit = ""
    higher_is_better = True

    def __init__(self, base: Base, data: Data, folder: Path) -> None:
        """Args: base and data of the model's entry; folder of the base model."""
        self.base, self.data, self.folder = base, data, folder
        self.dialogue, self.summary = (data.columns.get(c, c) for c in ("dialogue", "summary"))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's.

        Raises:
            FileNotFoundError: there is no base model yet.
        """
        tokenizer = load_tokenizer(self.base, self.folder)
        if tokenizer is None:
            raise FileNotFoundError(f"no tokenizer in {self.folder}; run notebook 1_base first")
        return tokenizer

    def new_model(self) -> PreTrainedModel:
        """Never: a summariser starts from a pretrained language model."""
        raise ValueError("task summarisation has no base model of its own; valid as `downstream`")

    def dataset(self, split: str, limit: int | None = None, seed: int = 0) -> Iterable:
        """The dialogues of a split with their summaries."""
        return load_split(self.data, split, limit, seed)

    def collate(self, examples: list[dict]) -> TextBatch:
        """Prompt and summary, padded on the right; the prompt is not a label."""
        prompts = [self._prompt(example) for example in examples]
        end = [self.tokenizer.eos_token_id]
        summaries = [
            self.tokenizer(" " + example[self.summary])["input_ids"] + end for example in examples
        ]
        pairs = list(zip(prompts, summaries, strict=True))
        tensors = {
            "input_ids": pad([prompt + summary for prompt, summary in pairs], end[0]),
            "attention_mask": pad([[1] * (len(p) + len(s)) for p, s in pairs], 0),
            "labels": pad([[IGNORED] * len(p) + s for p, s in pairs], IGNORED),
        }
        return TextBatch(tensors, examples)

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, batches: Iterable[TextBatch]) -> Score:
        """Score greedy summaries of at most half the prompt's length and 16 tokens more."""
        model.eval()
        examples, written = [], []
        for batch in tqdm(batches, desc="summarise", unit="batch", delay=5, leave=False):
            prompts = [self._prompt(example) for example in batch.examples]
            ids = pad(prompts, self.tokenizer.eos_token_id, left=True)
            mask = pad([[1] * len(prompt) for prompt in prompts], 0, left=True)
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=ids.shape[1] // 2 + 16,
                do_sample=False,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.eos_token_id,
            )
            new = output[:, ids.shape[1] :]
            written += self.tokenizer.batch_decode(new, skip_special_tokens=True)
            examples += batch.examples
        return self.score([text.strip() for text in written], examples)

    def score(self, written: list[str], examples: list[dict]) -> Score:
        """Mean ROUGE F1 and, where the data name their slots, the percentage of slots right.

        Args:
            written: one summary for each example.
            examples: dialogue, summary and, if known, slots: the words that a right summary says.
        """
        scorer = RougeScorer(list(KINDS.values()), use_stemmer=True)
        references = [example[self.summary] for example in examples]
        scores = [
            scorer.score(split_sentences(reference), split_sentences(text))
            for reference, text in zip(references, written, strict=True)
        ]
        values = {
            name: 100 * sum(score[kind].fmeasure for score in scores) / len(scores)
            for name, kind in KINDS.items()
        }
        for slot in examples[0].get("slots", ()):
            pairs = zip(written, examples, strict=True)
            right = sum(says(text, example["slots"][slot]) for text, example in pairs)
            values[f"{slot} right"] = 100 * right / len(written)
        answers = {
            "dialogue": [example[self.dialogue].replace("\n", " ⏎ ") for example in examples],
            "reference": references,
            "summary": written,
        }
        return Score(values, len(written), dict.fromkeys(KINDS, "rouge-score, stemmer"), answers)

    def score_first_words(self, batches: Iterable[TextBatch], n: int = 20) -> Score:
        """The baseline that needs no model: a dialogue's first n words are its summary."""
        examples = [example for batch in batches for example in batch.examples]
        first = [" ".join(example[self.dialogue].split()[:n]) for example in examples]
        return self.score(first, examples)

    def save_processor(self, path: Path) -> None:
        """Write the tokenizer into a model's folder."""
        self.tokenizer.save_pretrained(path)

    def _prompt(self, example: dict) -> list[int]:
        # The release's prompt ends in a space; here it opens the summary, where BPE puts it.
        return self.tokenizer(PROMPT.format(dialogue=example[self.dialogue]))["input_ids"]


def split_sentences(text: str) -> str:
    """One sentence a line, as ROUGE-Lsum wants it: cut after . ! or ? before a capital letter.

    A fixed rule instead of nltk's trained splitter, which is a download.
    """
    return re.sub(r"(?<=[.!?]) +(?=[A-Z])", "\n", text.strip())


def says(text: str, words: str) -> bool:
    """Whether a text holds these words as they are, not as part of longer ones."""
    return re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", text) is not None
