"""Can a base model copy? Its notes of held-out dialogues, line by line against what was agreed.

Adapters can teach a form; looking up a name and copying it must be there before.
"""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from study.metrics import Metric
from study.tasks import Score
from study.tasks.data import load_split
from study.tasks.language import Task
from study.tasks.text import continue_prompts


@torch.no_grad()
def score_notes(model: PreTrainedModel, task: Task, batch_size: int = 50) -> Score | None:
    """The percentage of notes that a language model, continuing greedily, gets exactly right.

    Args:
        model: a base model, in evaluation mode.
        task: language modelling on texts some of which end in notes (column `notes`).
        batch_size: texts to continue at a time.

    Returns:
        {"notes: who": …, one entry for each slot}, or None if the data have no notes.
    """
    rows = load_split(task.data, "test")
    if "notes" not in rows.column_names:
        return None
    rows = [row for row in rows if row["notes"]]
    most = 8 + max(len(task.tokenizer(row["notes"])["input_ids"]) for row in rows)
    written = []
    for start in range(0, len(rows), batch_size):
        written += _continue(model, task, rows[start : start + batch_size], most)
    pairs = [
        (read_notes(row["notes"]), read_notes(w)) for row, w in zip(rows, written, strict=True)
    ]
    values = {}
    for slot in sorted(pairs[0][0]):
        right = sum(w.get(slot) == notes[slot] for notes, w in pairs)
        values[Metric(f"notes: {slot}", "%")] = 100 * right / len(pairs)
    return Score(values, len(pairs))


def read_notes(text: str) -> dict[str, str]:
    """The lines `slot: note` of a text, the first of each slot."""
    lines: Iterable[list[str]] = (line.split(": ", 1) for line in text.strip().splitlines())
    notes: dict[str, str] = {}
    for line in lines:
        if len(line) == 2:
            notes.setdefault(*line)
    return notes


def _continue(model: PreTrainedModel, task: Task, rows: list[dict], most: int) -> list[str]:
    """What a model writes in the place of the notes, up to the end of the text."""
    tokenizer = task.tokenizer
    prompts = [tokenizer(row["text"].removesuffix(row["notes"]))["input_ids"] for row in rows]
    return continue_prompts(model, tokenizer, prompts, [most] * len(prompts))
