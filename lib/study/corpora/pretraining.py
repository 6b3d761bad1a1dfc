"""Pretraining text of the dialogue model: docstrings, and dialogues that are followed by notes.

Both people take notes, as a list or in sentences, in any order, so the text asks twice to look up
and copy what was agreed: from the dialogue, and (which is learnt first) from the other's notes.
Copying is the ability that a few adapters can later turn into summaries, but cannot teach; what
was learnt for lists alone stays with lists, hence the sentences.
"""

import random
from pathlib import Path

from datasets import Dataset

from study.corpora import write_split
from study.corpora.dialogues import Dialogue, make_dialogues
from study.corpora.docs import read_docstrings

DIALOGUES = 0.95  # of the documents; docstrings are longer
NOTES = "\nNotes:\n"  # before notes in a list
AGREED = "\nAgreed:\n"  # before notes in sentences


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Write one Parquet file per split: columns `text` and `notes`.

    `notes` is how a text ends from its first list on; empty where sentences or a docstring come
    first.

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
        write_split(Dataset.from_list(rows), folder, split)


def take_notes(dialogue: Dialogue, rng: random.Random) -> dict[str, str]:
    """A dialogue with the notes of both people, each a list or sentences, in random orders."""
    heads = rng.choices((NOTES, AGREED), k=2)
    lines = [list_slots(dialogue) if head == NOTES else tell_slots(dialogue) for head in heads]
    first, second = ("\n".join(rng.sample(notes, len(notes))) for notes in lines)
    notes = first + heads[1] + second
    return {"text": dialogue.text + heads[0] + notes, "notes": notes if heads[0] == NOTES else ""}


def list_slots(dialogue: Dialogue) -> list[str]:
    """What was agreed, one `slot: note` for each slot."""
    return [f"{slot}: {note}" for slot, note in dialogue.notes.items()]


def tell_slots(dialogue: Dialogue) -> list[str]:
    """What was agreed, one short sentence for each slot."""
    says = dialogue.slots
    return [
        f"{says['who']} meet.",
        f"They {says['what']}.",
        f"They meet {says['where']}.",
        f"It is {says['when']}.",
        f"{says['brings']}.",
    ]
