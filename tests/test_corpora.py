"""The embedded corpora: what their users rely on."""

import random
import re

from study.copying import read_notes
from study.corpora import cldr, dialogues, docs, pretraining, tatoeba


def test_a_summary_says_every_slot_and_what_was_agreed_last():
    made = dialogues.make_dialogues(200, "test")
    for dialogue in made:
        assert all(words in dialogue.summary for words in dialogue.slots.values())
        assert dialogue.summary.count(".") == 1 and set(dialogue.slots) == set(dialogues.SLOTS)
        place = dialogue.notes["where"]
        said = [line for line in dialogue.text.splitlines() if f" {place}." in line]
        assert said and dialogue.text.index(said[-1]) == max(
            dialogue.text.index(line)
            for line in dialogue.text.splitlines()
            if any(f" {other}." in line for other in dialogues.list_places())
        )
    assert made == dialogues.make_dialogues(200, "test")
    assert made[:9] != dialogues.make_dialogues(9, "another")


def test_both_peoples_notes_close_the_text_as_lists_or_sentences_in_any_order():
    rng = random.Random(0)
    made = dialogues.make_dialogues(40, "test")
    rows = [pretraining.take_notes(dialogue, rng) for dialogue in made]
    heads = (pretraining.NOTES, pretraining.AGREED)
    for row, dialogue in zip(rows, made, strict=True):
        told = re.split("|".join(heads), row["text"].removeprefix(dialogue.text))[1:]
        listed, said = pretraining.list_slots(dialogue), pretraining.tell_slots(dialogue)
        assert [sorted(notes.split("\n")) in (sorted(listed), sorted(said)) for notes in told] == [
            True,
            True,
        ]
        starts_with_list = row["text"].startswith(dialogue.text + heads[0])
        assert bool(row["notes"]) == starts_with_list and row["text"].endswith(row["notes"])
        if starts_with_list:
            assert row["text"] == dialogue.text + heads[0] + row["notes"]
            assert read_notes(row["notes"]) == dialogue.notes
        assert dialogue.summary not in row["text"] and "ummar" not in row["text"]
    assert len({row["notes"].split(":")[0] for row in rows}) > 2


def test_translations_say_the_same_numbers(tmp_path):
    rng = random.Random(0)
    for _ in range(300):
        chinese, english = cldr._percentage(rng)
        assert chinese == english  # 12 % is 12 % in both
    assert cldr.make_pair(random.Random(1)) == cldr.make_pair(random.Random(1))
    cldr.write_corpus(tmp_path, train=300, validation=20, test=20)
    from datasets import load_dataset

    splits = load_dataset(str(tmp_path))
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 300,
        "validation": 20,
        "test": 20,
    }
    sources = [source for split in splits.values() for source in split["source"]]
    assert len(set(sources)) == 340


def test_docstrings_are_read_and_not_imported(tmp_path):
    long = "Says what it does." * 10
    source = (
        f'raise SystemExit("imported")\ndef f():\n    """{long}"""\ndef g():\n    """Short."""\n'
    )
    (tmp_path / "module.py").write_text(source)
    assert docs._docstrings(tmp_path / "module.py") == [long]
    (tmp_path / "broken.py").write_text("print 'old'")
    assert docs._docstrings(tmp_path / "broken.py") == []


def test_the_papers_translation_archive_is_read_line_by_line(tmp_path):
    import gzip
    import tarfile

    for name, lines in (("train.src.gz", "one\ntwo\n"), ("train.trg.gz", "一\n二\n")):
        with gzip.open(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write(lines)
    with tarfile.open(tmp_path / "eng-zho.tar", "w") as tar:
        for name in ("train.src.gz", "train.trg.gz"):
            tar.add(tmp_path / name, f"data/eng-zho/{name}")
    pairs = list(tatoeba.read_pairs(tmp_path / "eng-zho.tar"))
    assert pairs == [{"source": "一", "target": "one"}, {"source": "二", "target": "two"}]
    assert [path.name for path in tmp_path.iterdir()] == ["eng-zho.tar"]
