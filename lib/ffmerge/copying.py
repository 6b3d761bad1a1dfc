"""Can a base model copy? Its notes of held-out dialogues, line by line against what was agreed.

Adapters can teach a form; looking up a name and copying it must be there before.
"""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from ffmerge.tasks import Score
from ffmerge.tasks.language import Task
from ffmerge.tasks.text import load_split, pad


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
    rows = load_split(task.data, "test", None, 0)
    if "notes" not in rows.column_names:
        return None
    rows = [row for row in rows if row["notes"]]
    written = []
    for start in range(0, len(rows), batch_size):
        written += _continue(model, task, rows[start : start + batch_size])
    pairs = [
        (read_notes(row["notes"]), read_notes(w)) for row, w in zip(rows, written, strict=True)
    ]
    values = {
        f"notes: {slot}": 100 * sum(w.get(slot) == notes[slot] for notes, w in pairs) / len(pairs)
        for slot in pairs[0][0]
    }
    return Score(dict(sorted(values.items())), len(pairs))


def read_notes(text: str) -> dict[str, str]:
    """The lines `slot: note` of a text, the first of each slot."""
    lines: Iterable[list[str]] = (line.split(": ", 1) for line in text.strip().splitlines())
    notes: dict[str, str] = {}
    for line in lines:
        if len(line) == 2:
            notes.setdefault(*line)
    return notes


def _continue(model: PreTrainedModel, task: Task, rows: list[dict]) -> list[str]:
    """What a model writes in the place of the notes, up to the end of the text."""
    tokenizer, end = task.tokenizer, task.tokenizer.eos_token_id
    prompts = [tokenizer(row["text"].removesuffix(row["notes"]))["input_ids"] for row in rows]
    longest = max(len(tokenizer(row["notes"])["input_ids"]) for row in rows)
    ids = pad(prompts, end, left=True).to(model.device)
    mask = pad([[1] * len(prompt) for prompt in prompts], 0, left=True).to(model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=longest + 8,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )
    return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
