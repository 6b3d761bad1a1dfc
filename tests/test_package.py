"""The wheel: a package of its own, with few dependencies, that does what the README shows."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from families import KEYS, make
from strangers import make_tokenizer, write_text
from transformers import AutoModelForCausalLM

import ffmerge
from ffmerge.catalogue import list_methods
from ffmerge.cli.listing import CONTEST
from ffmerge.files import read_json
from ffmerge.saving.folders import ORIGIN
from study.config import load_params
from study.report.packaged import summarise_contest
from study.report.reference import write_reference

OPTIONAL = {"PIL": "pillow", "datasets": "datasets"}  # for the command line's data


def run(*command, cwd, given="", **variables):
    """A subprocess that sees no more of this environment than it is given."""
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        input=given,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what a wheel is built from: building leaves files behind."""
    root, folder = Path(__file__).parents[1], tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, folder)
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(root / "lib", folder / "lib", ignore=unwanted)
    return folder


@pytest.fixture(scope="module")
def wheel(sources):
    """The wheel, built."""
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--wheel-dir", sources / "built", sources, cwd=sources)
    (built,) = (sources / "built").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Where the wheel lies, and the path on which it is found with what it depends on.

    A path is not searched for .pth files, so that the checkout is not on it.
    """
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    run(*pip, folder, wheel, cwd=folder)
    dependencies = Path(importlib.util.find_spec("torch").origin).parents[1]
    return folder, f"{folder}:{dependencies}"


def read_readme(repository):
    """The README's example, its lines for the shell, and all of its text."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (lines,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return example, lines, text


@pytest.fixture
def stranger(tmp_path):
    """A folder with a model and with text, under the names that the README gives them."""
    model = make("llama", AutoModelForCausalLM, **KEYS | {"num_hidden_layers": 6})
    for part in (model, make_tokenizer()):
        part.save_pretrained(tmp_path / "MODEL")
    (tmp_path / "notes").mkdir()
    write_text(tmp_path / "notes" / "monday.txt", n_words=4000)
    return tmp_path


def check_lines(folder, told):
    """What the README's lines for the shell leave behind, and tell."""
    base, small, plain = (folder / name for name in ("MODEL", "small", "plain"))
    assert read_json(small / ORIGIN)["removed"] == "2 FF sublayers"
    opened = AutoModelForCausalLM.from_pretrained(plain)
    n, before = (ffmerge.count_parameters(model) for model in (opened, ffmerge.load(base)))
    assert n < before and f"{before:,} → {n:,} parameters" in told
    assert f"saved     {plain.name}\n" in told and "neurons_obs_refit" in told.split("saved")[-1]


def test_the_wheel_holds_the_package_and_neither_study_nor_workflow(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"ffmerge", f"{wheel.name[:13]}.dist-info"}
    assert {"ffmerge/py.typed", "ffmerge/cli/contest.json", "ffmerge/__main__.py"} <= set(names)
    assert all(f"ffmerge/methods/{method}.py" in names for method in list_methods())


# What a shell does with the README's lines; but transformers is imported once, not for each.
SHELL = """
import runpy, shlex, sys
for line in sys.stdin.read().splitlines():
    python, option, module, *sys.argv[1:] = shlex.split(line)
    assert (python, option) == ("python", "-m"), line
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, line
"""
# Auto classes that are imported after ffmerge know it too (transformers takes seconds to import).
BEFORE = "import ffmerge\n"
AFTER = """
from transformers import AutoConfig, AutoModel
from ffmerge.saving.wrapping import FFMergeConfig
assert FFMergeConfig in AutoModel._model_mapping and AutoConfig.for_model('ffmerge')
"""


def test_the_readmes_lines_run_where_only_the_wheel_is(repository, installed, stranger):
    folder, path = installed
    example, lines, text = read_readme(repository)
    base = sys._base_executable  # without this environment's packages, but for the path's
    code = BEFORE + example + AFTER + SHELL
    printed = run(base, "-c", code, given=lines, cwd=stranger, PYTHONPATH=path)
    first, told = printed.split("\n", 1)
    assert f"It prints `{first}`" in text
    check_lines(stranger, told)
    find = "from importlib.util import find_spec as f; print(f('ffmerge').origin, f('study'))"
    found = run(base, "-c", find, cwd=stranger, PYTHONPATH=path)
    assert found.split() == [str(folder / "ffmerge" / "__init__.py"), "None"]


def test_importing_ffmerge_is_light(tmp_path):
    library = str(Path(ffmerge.__file__).parents[1])
    code = "import sys, ffmerge; print({'torch', 'transformers'} & set(sys.modules))"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=library) == "set()\n"


@pytest.mark.slow
@pytest.mark.network
def test_the_readmes_lines_run_in_an_empty_environment(repository, sources, stranger):
    run(sys.executable, "-m", "venv", "empty", cwd=stranger)
    shell = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    shell |= {"PATH": f"{stranger / 'empty' / 'bin'}:/usr/bin:/bin"}
    example, lines, text = read_readme(repository)
    package, with_extras = re.findall(r"`(pip install [^`]+)`", text)
    local = f"torch=={torch.__version__}"  # the same build, which may be that for CPUs
    run("sh", "-ec", f"pip install {local}", cwd=sources, **shell)
    run("sh", "-ec", package, cwd=sources, **shell)
    packages = run("pip", "list", cwd=stranger, **shell)
    assert "ffmerge" in packages and "dvc" not in packages and "pandas" not in packages
    assert f"`{run('python', '-c', example, cwd=stranger, **shell).strip()}`" in text
    check_lines(stranger, run("sh", "-ec", lines, cwd=stranger, **shell))
    run("sh", "-ec", with_extras, cwd=sources, **shell)
    assert {"gguf", "datasets"} <= set(run("pip", "list", cwd=stranger, **shell).split())


def test_the_package_imports_what_it_declares_and_no_more(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    optional = (x for of_one in project["optional-dependencies"].values() for x in of_one)
    extras = {re.match(r"[\w-]+", name)[0] for name in optional}
    always, sometimes = set(), set()
    for path in Path(ffmerge.__path__[0]).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names = {name.split(".")[0] for name in [*names, getattr(node, "module", "")]}
                (always if id(node) in top else sometimes).update(names)
    known = sys.stdlib_module_names | {"ffmerge", "", None}
    assert always - known == declared
    assert {OPTIONAL.get(name, name) for name in sometimes - known} <= declared | extras
    pins = (repository / "requirements.txt").read_text()
    assert all(f"{name}==" in pins for name in declared | extras)


def test_the_checkout_still_finds_study_and_workflow(repository):
    """`-e .` puts all of lib/ on the path, though the wheel takes ffmerge alone."""
    find = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert find["packages"]["find"]["where"] == ["lib"]
    for name in ("study", "workflow"):
        assert importlib.util.find_spec(name) is not None


def test_the_contests_numbers_are_those_of_the_results(repository):
    results = pd.read_csv(repository / "results" / "results.csv")
    told = read_json(CONTEST)
    assert told == summarise_contest(results, load_params(repository))
    assert set(told) <= set(list_methods()) and "permute" in told
    uneven, even = (told[f"neurons_obs_{name}"]["a half"] for name in ("budget", "refit"))
    both = set(even) & set(uneven)
    assert both and all(uneven[m][0] > even[m][0] for m in both)  # as `compress --help` says


def test_the_reference_is_that_of_the_docstrings(repository):
    assert (repository / "docs" / "api.md").read_text(encoding="utf-8") == write_reference()
