"""Summaries of dialogues (paper, Sections 4.5 and 5.5): ROUGE, and slots that are right.

A decoder is asked `Summarize the following:`, as in the paper's release; only the summary counts
in the loss.
"""

import re
from collections.abc import Iterable
from itertools import chain

from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedModel

from study.metrics import Metric
from study.tasks import Score
from study.tasks.data import load_split
from study.tasks.sharing import score_batches
from study.tasks.text import IGNORED, TextBatch, TextTask, continue_prompts, pad, pad_inputs

PROMPT = "Summarize the following:\n{dialogue}\nSummary:"
KINDS = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-Lsum": "rougeLsum"}  # F1, in percent


class Task(TextTask):
    """Dialogue summaries with a decoder that was pretrained on something else."""

    metric = Metric("ROUGE-1")

    def new_model(self) -> PreTrainedModel:
        """Never: a summariser starts from a pretrained language model."""
        raise ValueError("task summarisation has no base model of its own; valid as `downstream`")

    def dataset(self, split: str, limit: int | None = None, seed: int = 0) -> Iterable:
        """The dialogues of a split with their summaries; SAMSum's mirrors have an empty one."""
        rows, dialogue = load_split(self.data, split, limit, seed), self.column("dialogue")
        return rows.filter(lambda row: row[dialogue])

    def collate(self, examples: list[dict]) -> TextBatch:
        """Prompt and summary, padded on the right; the prompt is not a label."""
        prompts = [self._prompt(example) for example in examples]
        end = [self.tokenizer.eos_token_id]
        summaries = [
            self.tokenizer(" " + example[self.column("summary")])["input_ids"] + end
            for example in examples
        ]
        pairs = list(zip(prompts, summaries, strict=True))
        tensors = pad_inputs([prompt + summary for prompt, summary in pairs], end[0])
        labels = pad([[IGNORED] * len(prompt) + summary for prompt, summary in pairs], IGNORED)
        return TextBatch(tensors | {"labels": labels}, examples)

    def evaluate(self, model: PreTrainedModel, batches: Iterable[TextBatch]) -> Score:
        """Score greedy summaries of at most half the prompt's length and 16 tokens more."""

        def summarise(batch: TextBatch) -> list[tuple[str, dict]]:
            prompts = [self._prompt(example) for example in batch.examples]
            most = [len(prompt) // 2 + 16 for prompt in prompts]
            written = continue_prompts(model, self.tokenizer, prompts, most)
            return list(zip(map(str.strip, written), batch.examples, strict=True))

        pairs = chain.from_iterable(score_batches(model, batches, summarise, "summarise"))
        return self.score(*map(list, zip(*pairs, strict=True)))

    def score(self, written: list[str], examples: list[dict]) -> Score:
        """Mean ROUGE F1 and, where the data name their slots, the percentage of slots right.

        Args:
            written: one summary for each example.
            examples: dialogue, summary and, if known, slots: the words that a right summary says.
        """
        scorer = RougeScorer(list(KINDS.values()), use_stemmer=True)
        references = [example[self.column("summary")] for example in examples]
        scores = [
            scorer.score(split_sentences(reference), split_sentences(text))
            for reference, text in zip(references, written, strict=True)
        ]
        values = {
            Metric(name): 100 * sum(score[kind].fmeasure for score in scores) / len(scores)
            for name, kind in KINDS.items()
        }
        for slot in examples[0].get("slots", ()):
            pairs = zip(written, examples, strict=True)
            right = sum(says(text, example["slots"][slot]) for text, example in pairs)
            values[Metric(f"{slot} right", "%")] = 100 * right / len(written)
        answers = {
            "dialogue": [
                example[self.column("dialogue")].replace("\n", " ⏎ ") for example in examples
            ],
            "reference": references,
            "summary": written,
        }
        return Score(values, len(written), dict.fromkeys(KINDS, "rouge-score, stemmer"), answers)

    def score_first_words(self, batches: Iterable[TextBatch], n: int = 20) -> Score:
        """The baseline that needs no model: a dialogue's first n words are its summary."""
        examples = [example for batch in batches for example in batch.examples]
        first = [" ".join(example[self.column("dialogue")].split()[:n]) for example in examples]
        return self.score(first, examples)

    def _prompt(self, example: dict) -> list[int]:
        # The release's prompt ends in a space; here it opens the summary, where BPE puts it.
        return self.tokenizer(PROMPT.format(dialogue=example[self.column("dialogue")]))["input_ids"]


def split_sentences(text: str) -> str:
    """One sentence a line, as ROUGE-Lsum wants it: cut after . ! or ? before a capital letter.

    A fixed rule instead of nltk's trained splitter, which is a download.
    """
    return re.sub(r"(?<=[.!?]) +(?=[A-Z])", "\n", text.strip())


def says(text: str, words: str) -> bool:
    """Whether a text holds these words as they are, not as part of longer ones."""
    return re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", text) is not None
