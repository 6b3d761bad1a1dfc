"""Notebook 9: the way of a stranger's model as a lesson, on the stand-in that it makes."""

import ast

import nbformat
import pytest

import ffmerge
from ffmerge.files import read_json
from study.stranger import make_stranger, read_docstrings
from workflow.code import notebook_code


@pytest.fixture
def lesson(repository):
    return repository / "notebooks" / "9_your_model.ipynb"


def test_the_lesson_runs_from_top_to_bottom(lesson, tiny, capsys):
    root, _ = tiny
    code = notebook_code(lesson).replace("steps = 200", "steps = 2")
    code = code.replace("tokens = 12000", "tokens = 1000").replace("held_out=4096", "held_out=500")
    exec(compile(code.replace("'4096'", "'500'"), lesson.name, "exec"), {"__name__": "lesson"})
    told = capsys.readouterr().out
    assert "chosen: layers" in told and "quality   perplexity" in told
    folder = root / "scratch" / "9_your_model"
    shared, pruned, base = (ffmerge.load(folder / name) for name in ("small", "pruned", "theirs"))
    assert ffmerge.count_parameters(shared) < ffmerge.count_parameters(base)
    assert ffmerge.count_parameters(pruned) <= ffmerge.count_parameters(shared)
    assert read_json(folder / "pruned" / "compression.json")["method"] == "neurons_obs_refit"


def test_its_command_is_the_one_that_it_shows(lesson):
    cells = nbformat.read(lesson, as_version=4).cells
    parameters = next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
    remove = ast.literal_eval(parameters.split("remove = ")[1].split("\n")[0])
    assert any(f"compress theirs --remove {remove} --data" in cell.source for cell in cells)
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert all(len(source.splitlines()) <= 10 for source in code[1:])  # after the imports
    prose = sum(len(cell.source) for cell in cells if cell.cell_type == "markdown")
    assert prose > sum(map(len, code))


@pytest.mark.slow
def test_the_stranger_was_not_trained_on_its_notes(tmp_path):
    model, notes = make_stranger(tmp_path, steps=1)
    texts, lines = read_docstrings(), notes.read_text(encoding="utf-8").splitlines()
    assert len(texts) > 500 and len(lines) == len(texts) // 4
    assert ffmerge.count_parameters(ffmerge.load(model)) > 500_000
