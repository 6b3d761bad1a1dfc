"""The rows of a model's data: embedded, local and hub data take the same path."""

from datasets import Dataset, IterableDataset, load_dataset

from ffmerge.hub import asking_hub
from study.sections import Data


def load_split(data: Data, split: str, limit: int | None = None, seed: int = 0) -> Dataset:
    """The rows of "train", "validation" or "test", at most `limit`; streamed if the entry says so.

    Args:
        data: the model's entry.
        split, limit, seed: as in `Task.dataset`.

    Raises:
        ValueError: the hub refuses the data, or does not answer; or they hold another number of
            rows than the entry says. Of a stream the hub's own count is read, where it gives one.
    """
    with asking_hub(data.path, "dataset", data.revision):
        rows = load_dataset(
            data.path,
            data.name,
            split=data.splits[split],
            revision=data.revision,
            streaming=data.streaming,
        )
    check_rows(data, split, rows)
    if data.streaming and split == "train":  # Trainer shuffles only what it can index
        rows = rows.shuffle(seed=seed, buffer_size=10_000)
    return rows if limit is None else rows.take(limit)


def check_rows(data: Data, split: str, rows: Dataset | IterableDataset) -> None:
    """Make sure that a split holds as many rows as the paper's did.

    Args:
        data, split: as in `load_split`.
        rows: all of the split.

    Raises:
        ValueError: it holds another number.
    """
    if isinstance(rows, Dataset):
        found = len(rows)
    else:  # nothing of it has been read
        told = (rows.info.splits or {}).get(data.splits[split])
        found = told and told.num_examples
    expected = data.rows.get(split, found)
    if found and found != expected:
        raise ValueError(
            f"{data.path} holds {found:,} rows for {split}, but params.yaml says data.rows.{split}:"
            f" {expected}; valid is the number that is there, and a result is then not comparable "
            "with the paper's"
        )
