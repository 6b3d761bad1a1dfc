"""What must run again after an edit, on the real pipeline with its committed results."""

import ast
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from study.config import load_params
from workflow.stages import describe_tour, list_stages

REPOSITORY = Path(__file__).parents[1]
ALL = load_params(REPOSITORY)
TWO = [describe_tour(ALL)[role] for role in ("model", "showcase")]  # all would only take longer
PARAMS = ALL.model_copy(update={"run": TWO})
TORCH = version("torch").partition("+")[0]


def call(root, *command, check=True, path=()):
    library = os.pathsep.join(map(str, (*path, root / "lib")))
    environment = os.environ | {"PYTHONPATH": library, "DVC_NO_ANALYTICS": "1"}
    options = {"cwd": root, "env": environment, "text": True, "capture_output": True}
    return subprocess.run(command, check=check, **options)


def copy_repository(target):
    """What git tracks but the store, edits in progress included: a fresh clone."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for name in filter(None, files.stdout.split("\0")):
        if (REPOSITORY / name).is_file() and not name.startswith(".dvc/store"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, target / name)
    call(target, "git", "init", "-q")
    return target


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    """The pipeline of two models after all of it has run, whatever the committed dvc.lock says."""
    root = copy_repository(tmp_path_factory.mktemp("settled"))
    edit(root / "params.yaml", f"run: [{', '.join(ALL.run)}]", f"run: [{', '.join(TWO)}]")
    call(root, sys.executable, str(REPOSITORY / "benchmarks" / "settle.py"))
    return root


@pytest.fixture
def copy(settled, tmp_path):
    return shutil.copytree(settled, tmp_path / "copy")


def check(root, path=()):
    """The stale stages, and why."""
    answer = call(root, sys.executable, "-m", "workflow.repro", "--check", check=False, path=path)
    if answer.returncode == 0:
        return set(), ""
    first, _, reasons = answer.stderr.partition("\n")
    assert first.startswith("stale: "), answer.stderr
    return set(first.removeprefix("stale: ").split(", ")), reasons


def find_stale(root, path=()):
    return check(root, path)[0]


def edit(path, old, new):
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new, 1))


def stages(*kinds, **wanted):
    """The names of all stages of some kinds about a variant, or a method, or any."""
    return {
        f"{kind}@{name}"
        for kind in kinds
        for name, item in list_stages(PARAMS)[kind].items()
        if wanted.items() <= item.items()
    }


def add_recipe(root, name, recipe):
    """Add a recipe; the models that list no variants of their own take it up."""
    edit(root / "params.yaml", "recipes:\n", f"recipes:\n  {name}: {recipe}\n")
    return [model for model in PARAMS.run if PARAMS.models[model].variants is None]


def test_committed_results_belong_to_committed_code(tmp_path):
    assert check(copy_repository(tmp_path)) == (set(), "")


@pytest.mark.slow
def test_a_clone_with_windows_line_endings_is_not_stale(copy, tmp_path):
    call(copy, "git", "add", "-A")
    call(copy, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "all")
    call(tmp_path, "git", "clone", "-q", "-c", "core.autocrlf=true", str(copy), "windows")
    assert b"\r\n" not in (tmp_path / "windows" / "params.yaml").read_bytes()
    assert find_stale(tmp_path / "windows") == set()


def list_new(models, method, variant):
    """The stages that a new recipe makes or restales, and figures."""
    expected = {"figures"}
    for model in models:
        expected |= {f"merges@{model}-{method}", f"evals@{model}-{variant}"}
        if PARAMS.models[model].tuned is None:  # or else its list leaves the new one out
            expected |= {f"finetune@{model}-{variant}-{seed}" for seed in PARAMS.seeds}
    return expected


def test_a_new_method_is_a_file_and_a_recipe_and_runs_alone(copy):
    shutil.copy(copy / "lib/ffmerge/methods/vanilla.py", copy / "lib/ffmerge/methods/another.py")
    models = add_recipe(copy, "another-third", "{method: another, ratio: third}")
    stale, reasons = check(copy)
    assert stale == list_new(models, "another", "another-third")
    assert "it never ran: merges@" in reasons


@pytest.mark.slow
def test_a_new_recipe_runs_alone_but_for_its_method(copy):
    models = add_recipe(copy, "last-half", "{method: permute, ratio: half, anchor: last}")
    stale, reasons = check(copy)
    assert stale == list_new(models, "permute", "last-half")
    assert "variants.last-half none →" in reasons


@pytest.mark.slow
def test_another_window_of_one_variant_restales_its_method_alone(copy):
    first = PARAMS.run[0]
    edit(copy / "params.yaml", "random_window: 1", "random_window: 5")
    edit(copy / "params.yaml", f"run: [{', '.join(PARAMS.run)}]", f"run: [{first}]")
    edit(copy / "params.yaml", "permute-half: {", "permute-half: {window: 3-9, ")
    stale, reasons = check(copy)
    assert stale == {f"merges@{first}-permute", "tour", "figures"}  # it has nothing else to show
    assert "variants.permute-half.window none → 3-9" in reasons
    assert "variants.random-1.random_window 1 → 5" in reasons


def test_a_new_function_restales_only_the_stages_that_reach_its_module(copy):
    with (copy / "lib/ffmerge/similarity.py").open("a") as file:
        file.write("\n\ndef unused():\n    return 0\n")
    stale, reasons = check(copy)
    assert stages("activations") <= stale <= stages("activations") | {"tour"}
    assert "code of 2_activations: " in reasons


def test_the_steps_of_one_variant_run_only_that_variant(copy):
    edit(copy / "params.yaml", "permute-third: {", "permute-third: {finetune: {steps: 300}, ")
    stale, reasons = check(copy)
    assert stale == stages("finetune", variant="permute-third") | {"figures"}
    assert "training.steps 200 → 300: finetune@vit-glyphs-permute-third-0" in reasons


@pytest.mark.slow
def test_a_colour_and_fewer_seeds_redraw_and_evaluate_nothing(copy):
    edit(copy / "lib/ffmerge/methods/permute.py", '"color": "#0072B2"', '"color": "#0000FF"')
    seeds = ", ".join(map(str, PARAMS.seeds))
    edit(copy / "params.yaml", f"seeds: [{seeds}]", f"seeds: [{PARAMS.seeds[0]}]")
    stale, reasons = check(copy)
    assert stale == {"figures"} and "methods.permute.look.color #0072B2 → #0000FF" in reasons


def add_field(path, section, line):
    """Add a line to a class, below its docstring."""
    text = path.read_text()
    found = next(n for n in ast.parse(text).body if getattr(n, "name", None) == section)
    lines = text.splitlines(keepends=True)
    lines.insert(found.body[0].end_lineno, f"    {line}\n")
    path.write_text("".join(lines))


def pretend(folder, package, number):
    """A package of another version, as importlib.metadata sees it."""
    about = folder / f"{package}-{number}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")
    return folder


def test_prose_new_settings_that_are_off_and_other_tools_restale_nothing(copy, tmp_path):
    edit(copy / "notebooks/4_merges.ipynb", "# 4 ·", "# Four ·")
    edit(
        copy / "lib/ffmerge/merging.py",
        '"""Permute and average',
        '"""Reworded: permute and average',
    )
    edit(copy / "lib/study/finetuning.py", "WEIGHTS = ", "# a comment\nWEIGHTS = ")
    sections = copy / "lib/study/sections.py"
    add_field(sections, "Training", "smoothing: float = 0.0")
    add_field(sections, "Recipe", "budget: str | None = None")
    add_field(sections, "Model", "notes: list[str] = []")
    add_field(sections, "Data", "packed: bool = False")
    pretend(tmp_path / "other", "ruff", "99.0")
    pretend(tmp_path / "other", "pytest", "99.0")
    pretend(tmp_path / "other", "torch", f"{TORCH}+cpu")  # the same release, built for some place
    assert find_stale(copy, [tmp_path / "other"]) == set()


@pytest.mark.slow
def test_a_version_that_decides_numbers_restales_and_is_named(copy, tmp_path):
    stale, reasons = check(copy, [pretend(tmp_path / "other", "torch", "99.0")])
    assert stages("base", "activations", "permutations", "merges", "finetune", "evals") <= stale
    assert f"versions.torch {TORCH} → 99.0" in reasons
