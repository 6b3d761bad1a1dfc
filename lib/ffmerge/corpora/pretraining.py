"""Pretraining text of the dialogue model: docstrings, and dialogues that are followed by notes.

Both people take notes, each in an order of their own, so the text asks twice to look up and copy
what was agreed: from the dialogue, and (which is learnt first) from the other's notes. Copying is
the ability that a few adapters can later turn into summaries, but cannot teach.
"""

import random
from pathlib import Path

from datasets import Dataset

from ffmerge.corpora.dialogues import Dialogue, make_dialogues
from ffmerge.corpora.docs import read_docstrings

DIALOGUES = 0.95  # of the documents; docstrings are longer
NOTES = "\nNotes:\n"  # between a dialogue and its notes


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Write one Parquet file per split: columns `text`, and `notes`, its end; docstrings have none.

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
    """A dialogue with the notes of both people, one line for each slot, in random orders."""
    lines = [f"{slot}: {note}" for slot, note in dialogue.notes.items()]
    orders = [rng.sample(lines, len(lines)) for _ in range(2)]
    notes = NOTES.join("\n".join(order) for order in orders)
    return {"text": dialogue.text + NOTES + notes, "notes": notes}
