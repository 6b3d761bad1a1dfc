"""COMET in an environment of its own: a stand-in for its command, and what is said without it."""

import sys

import pandas as pd
import pytest

from ffmerge import hub
from study import comet, packages
from study.records import write_answers
from study.tasks import Score

STUB = """#!{python}
import json, sys
words = sys.argv[1:]
translations = words[words.index("-t") + 1 : words.index("--model")]
sources, references = (open(words[words.index(o) + 1]).read().splitlines() for o in ("-s", "-r"))
told = {{}}
for name in translations:
    lines = open(name).read().splitlines()
    assert len(lines) == len(sources) == len(references)
    told[name] = [{{"COMET": float(a == b)}} for a, b in zip(lines, references)]
json.dump(told, open(words[words.index("--to_json") + 1], "w"))
open({calls!r}, "a").write(words[words.index("--model") + 1] + "\\n")
"""


@pytest.fixture
def translated(tiny):
    """Three states of two variants with their translations; nothing else has run."""
    root, _ = tiny
    for variant, state, lines in [
        ("base", "base", ["one", "two", "", "four"]),
        ("permute-third", "merged", ["one", "x", "x", "x"]),
        ("permute-third", "tuned-0", ["one", "two", "x", "x"]),
    ]:
        texts = {"source": ["一", "二", "三", "四"], "reference": ["one", "two", "three", "four"]}
        told = Score({}, 4, answers=texts | {"translation": lines})
        write_answers(told, root / "models/vit-glyphs/answers" / variant / state)
    return root


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """comet-score on PATH, which counts right sentences, and its calls."""
    monkeypatch.setattr(hub, "_ask", lambda *told: None)
    command, calls = tmp_path / "bin" / "comet-score", tmp_path / "calls"
    command.parent.mkdir()
    command.write_text(STUB.format(python=sys.executable, calls=str(calls)))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent))
    return calls


def test_every_state_is_scored_in_one_call(translated, calls):
    comet.main(["vit-glyphs"])
    table = pd.read_csv(translated / "results/models/vit-glyphs/comet.csv")
    assert list(table) == comet.COLUMNS and (table.metric == "COMET").all()
    scores = table.set_index(["variant", "state"]).value.to_dict()
    tuned, merged = ("permute-third", "tuned-0"), ("permute-third", "merged")
    assert scores == {("base", "base"): 75, merged: 25, tuned: 50}
    assert (table.n_examples == 4).all() and "2.2.7" in table.signature[0]
    assert calls.read_text().splitlines() == ["Unbabel/wmt22-comet-da"]


def test_a_command_that_fails_is_a_skip_and_keeps_what_was_scored(translated, calls, capsys):
    comet.main(["vit-glyphs"])
    output = translated / "results/models/vit-glyphs/comet.csv"
    before = output.read_bytes()
    (translated / "models/vit-glyphs/answers/base/base/source.txt").write_text("一\n")
    capsys.readouterr()
    comet.main(["vit-glyphs"])
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("COMET is skipped: comet-score failed (AssertionError); valid are a")
    assert output.read_bytes() == before


def test_without_an_index_or_a_hub_one_sentence_says_why(translated, calls, monkeypatch, capsys):
    def no_hub(*told):
        raise ConnectionError

    monkeypatch.setattr(hub, "_ask", no_hub)
    stub = calls.parent / "bin" / "comet-score"
    stub.write_text(f"#!{sys.executable}\nraise OSError('no model')\n")
    comet.main(["vit-glyphs"])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "COMET is skipped: comet-score failed (OSError: no model); valid are a " + (
        "checkpoint that it can load, on the hub or as a .ckpt file, and memory for it"
    )
    stub.unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(calls.parent / "cache"))
    monkeypatch.setattr(packages, "_download", lambda *args: "No matching distribution found")
    comet.main(["vit-glyphs"])
    said = capsys.readouterr().out.splitlines()[-1]
    words = "COMET is skipped: package 'unbabel-comet==2.2.7' cannot be fetched (No matching dist"
    assert said.startswith(words)
    assert not (translated / ".venv-comet").exists()
    assert not (translated / "results/models/vit-glyphs/comet.csv").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [("vit", "model 'vit' is unknown; valid are"), ("vit-glyphs", "holds no translations; valid")],
)
def test_a_model_without_translations_is_an_error(tiny, model, message):
    with pytest.raises(SystemExit, match=message):
        comet.main([model])
