"""What must run again after an edit, on the real pipeline with its committed results."""

import os
import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def copy(repository, tmp_path):
    """What git tracks, in a folder of its own: a fresh clone, edits in progress included."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=repository, check=True, capture_output=True, text=True)
    for name in filter(None, files.stdout.split("\0")):
        if (repository / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def find_stale(root):
    environment = os.environ | {"PYTHONPATH": str(root / "lib"), "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "workflow.repro", "--check"]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if run.returncode == 0:
        return set()
    assert run.stderr.startswith("stale: "), run.stderr
    return set(run.stderr.removeprefix("stale: ").strip().split(", "))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_committed_results_belong_to_committed_code_and_prose_is_free(copy):
    edit(copy / "notebooks/4_merges.ipynb", "# 4 · Merges", "# 4 · Merging")
    edit(copy / "lib/ffmerge/merging.py", '"""Permute, average, tie', '"""Reworded: permute, tie')
    edit(copy / "lib/ffmerge/finetuning.py", "WEIGHTS = ", "# a comment\nWEIGHTS = ")
    assert find_stale(copy) == set()


def test_editing_the_drawing_redraws_and_nothing_else(copy):
    edit(copy / "lib/ffmerge/figures.py", '"permute": "#0072B2"', '"permute": "#0000FF"')
    assert find_stale(copy) == {"figures"}


def test_the_steps_of_one_variant_run_only_that_variant(copy):
    old = "permute-third: {method: permute, removed: third, int8: true}"
    edit(copy / "params.yaml", old, old[:-1] + ", finetune: {steps: 300}}")
    expected = {"figures"}
    for model in ("vit-glyphs", "gpt2-docs", "marian-cldr", "olmo-dialogues"):
        kind = "-qlora" if model == "olmo-dialogues" else ""
        variant = f"{kind}@{model}-permute-third"
        expected |= {f"evals{variant}"} | {f"finetune{variant}-{seed}" for seed in (0, 1, 2)}
    assert find_stale(copy) == expected
