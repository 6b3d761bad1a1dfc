"""The wheel: a package of its own, with few dependencies, that does what the README shows."""

import ast
import importlib.util
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

import ffmerge
from ffmerge.catalogue import list_methods
from ffmerge.cli.listing import CONTEST
from ffmerge.files import read_json
from study.config import load_params
from study.report.packaged import summarise_contest
from study.report.reference import write_reference

OPTIONAL = {"PIL": "pillow", "datasets": "datasets"}  # for the command line's data


def run(*command, cwd, **variables):
    """A subprocess that sees no more of this environment than it is given."""
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources: building leaves files behind."""
    root, folder = Path(__file__).parents[1], tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, folder)
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(root / "lib", folder / "lib", ignore=unwanted)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--wheel-dir", folder / "built", folder, cwd=folder)
    (built,) = (folder / "built").glob("*.whl")
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


def read_example(repository):
    """The README's first example, and what it prints."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return example, text


def test_the_wheel_holds_the_package_and_neither_study_nor_workflow(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"ffmerge", f"{wheel.name[:13]}.dist-info"}
    assert {"ffmerge/py.typed", "ffmerge/cli/contest.json", "ffmerge/__main__.py"} <= set(names)
    assert all(f"ffmerge/methods/{method}.py" in names for method in list_methods())


# Auto classes that are imported after ffmerge know it too (transformers takes seconds to import).
BEFORE = "import ffmerge\n"
AFTER = """
from transformers import AutoConfig, AutoModel
from ffmerge.saving.wrapping import FFMergeConfig
assert FFMergeConfig in AutoModel._model_mapping and AutoConfig.for_model('ffmerge')
"""


def test_the_readmes_lines_run_where_only_the_wheel_is(repository, installed, tmp_path):
    folder, path = installed
    example, text = read_example(repository)
    base = sys._base_executable  # without this environment's packages, but for the path's
    printed = run(base, "-c", BEFORE + example + AFTER, cwd=tmp_path, PYTHONPATH=path)
    assert f"It prints `{printed.strip()}`" in text
    find = "from importlib.util import find_spec as f; print(f('ffmerge').origin, f('study'))"
    found = run(base, "-c", find, cwd=tmp_path, PYTHONPATH=path)
    assert found.split() == [str(folder / "ffmerge" / "__init__.py"), "None"]
    assert "neurons_obs_refit" in run(
        base, "-m", "ffmerge", "methods", cwd=tmp_path, PYTHONPATH=path
    )


def test_importing_ffmerge_is_light(tmp_path):
    library = str(Path(ffmerge.__file__).parents[1])
    code = "import sys, ffmerge; print({'torch', 'transformers'} & set(sys.modules))"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=library) == "set()\n"


@pytest.mark.slow
@pytest.mark.network
def test_the_readmes_lines_run_in_an_empty_environment(repository, wheel, tmp_path):
    run(sys.executable, "-m", "venv", "empty", cwd=tmp_path)
    python = tmp_path / "empty" / "bin" / "python"
    local = f"torch=={torch.__version__}"  # the same build, which may be that for CPUs
    run(python, "-m", "pip", "install", wheel, local, cwd=tmp_path)
    example, text = read_example(repository)
    assert f"`{run(python, '-c', example, cwd=tmp_path).strip()}`" in text
    packages = run(python, "-m", "pip", "list", cwd=tmp_path)
    assert "ffmerge" in packages and "dvc" not in packages and "pandas" not in packages


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
