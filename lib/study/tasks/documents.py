"""Language modelling on whole documents: perplexity per token, each document read by itself.

For texts shorter than the context. Packed into blocks as in `language`, two thirds of such
documents would be cut in two, and what their second half refers to would be gone: a model that
is to learn to look things up and copy them then learns it half as fast.
"""

from collections.abc import Iterable

from datasets import Dataset

from study.tasks import language
from study.tasks.data import load_split


class Task(language.Task):
    """Language modelling with a decoder, one document an example."""

    def dataset(self, split: str, limit: int | None = None, seed: int = 0) -> Iterable:
        """Documents from their first token to the end-of-text token, at most a context of each.

        Training groups them by `length`, so that little of a batch is padding.
        """
        rows = load_split(self.data, split, limit, seed)
        columns = rows.column_names
        same = {} if self.data.streaming else {"new_fingerprint": self._fingerprint(rows)}
        return rows.map(self._cut, batched=True, remove_columns=columns, **same)

    def _cut(self, rows: dict[str, list[str]]) -> dict[str, list]:
        """The tokens of texts and what ends them, as far as the context goes."""
        texts = self.tokenizer(rows[self.column("text")], verbose=False)["input_ids"]
        cut = [(ids + self._separator())[: self.context] for ids in texts]
        return {"input_ids": cut, "length": [len(ids) for ids in cut]}

    def _fingerprint(self, rows: Dataset) -> str:
        """Not that of the same texts, packed."""
        return f"documents{super()._fingerprint(rows)}"
