"""The rows of a model's data: embedded, local and hub data take the same path."""

from datasets import Dataset, load_dataset

from ffmerge.hub import asking_hub
from study.sections import Data


def load_split(data: Data, split: str, limit: int | None = None, seed: int = 0) -> Dataset:
    """The rows of "train", "validation" or "test", at most `limit`; streamed if the entry says so.

    Args:
        data: the model's entry.
        split, limit, seed: as in `Task.dataset`.

    Raises:
        ValueError: the hub refuses the data, or does not answer.
    """
    with asking_hub(data.path, "dataset", data.revision):
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
