"""Pretraining text of the dialogue model: docstrings, and dialogues that are followed by notes.

Notes in random order ask the model to look up and copy what was agreed. That is the ability that
a few adapters can later turn into summaries, but cannot teach.
"""

import random
from pathlib import Path

from datasets import Dataset

from ffmerge.corpora.dialogues import Dialogue, make_dialogues
from ffmerge.corpora.docs import read_docstrings

DIALOGUES = 0.8  # of the documents
NOTES = "\nNotes:\n"  # between a dialogue and its notes


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Write one Parquet file per split: columns `text`, and `notes`, its end ("" for docstrings).

    Args:
        folder: an existing, empty folder.
        train, validation, test: number of documents.
    """
    docstrings = iter(read_docstrings())
    for split, n in (("validation", validation), ("test", test), ("train", train)):
        rng = random.Random(f"pretraining {split}")
        dialogues = make_dialogues(round(DIALOGUES * n), seed=f"pretraining {split}")
        rows = [take_notes(dialogue, rng) for dialogue in dialogues]
        rows += [{"text": next(docstrings), "notes": ""} for _ in range(n - len(rows))]
        rng.shuffle(rows)
        Dataset.from_list(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def take_notes(dialogue: Dialogue, rng: random.Random) -> dict[str, str]:
    """A dialogue with its notes, one line for each slot, in random order."""
    lines = [f"{slot}: {note}" for slot, note in dialogue.notes.items()]
    rng.shuffle(lines)
    notes = "\n".join(lines)
    return {"text": dialogue.text + NOTES + notes, "notes": notes}
