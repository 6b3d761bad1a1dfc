"""A tiny profile: the real notebooks, stages and recipes, on a model that trains in a second."""

import gc
import os
import shutil
from pathlib import Path

import datasets
import matplotlib
import pytest
import torch
import yaml
from matplotlib.figure import Figure

import workflow  # noqa: F401 (before a test imports nbformat: see there)
from ffmerge.regression import regress_groups
from study.config import find_root, load_params
from study.places import PUBLISH

matplotlib.use("agg")
torch.set_num_threads(1)  # `make test` runs as many files at a time as there are cores
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # seconds for a network's threads: none here
REPOSITORY = Path(__file__).parents[1]
PAPER = (
    "base base-tuned vanilla-third vanilla-half vanilla-most permute-third permute-half "
    "permute-most drop-sixth drop-third random-1 random-2 random-3 anchor-middle anchor-last"
).split()
BEYOND = ["refit-third", "obs-third", "obs-budget-third", "wanda"]  # one of each kind, not tuned
LONGEST = ("test_pipeline.py", "test_text_pipeline.py")


def pytest_configure(config):
    """On a machine with a GPU, too, all tests but those of `-m gpu` run on the CPU."""
    if "not gpu" in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process is left with one at the end (`make test`)."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish():
    """All that is imported stays: looking through it for garbage takes half a second each time.

    accelerate does so after every tuning, and Python by itself.
    """
    gc.collect()
    gc.freeze()


def write_tiny_profile(root: Path, **choices) -> Path:
    """Write params.yaml, notebooks and the paper's numbers into an empty folder.

    Args:
        root: the folder.
        choices: entries of params.yaml to replace, such as seeds, or variants, tuned of the model.
    """
    root.mkdir(exist_ok=True)
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    model = content["models"]["vit-glyphs"] | {"tuned": None}
    recipes = {name: content["recipes"][name] for name in PAPER + BEYOND}
    for name in BEYOND:
        recipes[name]["seeds"] = "none"
    content |= {
        "recipes": recipes,
        "run": ["vit-glyphs"],
        "corpora": {"glyphs": {"train": 256, "validation": 64, "test": 64}},
        "models": {"vit-glyphs": model},
    }
    model["layers"] = {"encoder": 6}
    model["base"]["architecture"] |= {
        "num_hidden_layers": 6,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
    }
    short = {"batch_size": 16, "evaluate_every": 2, "precision": "float32", "warmup_steps": 0}
    model["base"]["training"] |= short | {"steps": 4}
    model["finetune"] |= short | {"steps": 4}
    model |= {
        "features": {"tokens": 300, "batch_size": 16},
        "validation_examples": 64,
        "batch_size": 32,
        "removed": {"third": 2, "half": 3, "most": 5},
        "dropped": {"sixth": 1, "third": 2},
    }
    model |= {name: choices.pop(name, model.get(name)) for name in ("variants", "tuned")}
    content |= choices
    (root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    shutil.copytree(REPOSITORY / "notebooks", root / "notebooks")
    (root / "results").mkdir()
    shutil.copy(REPOSITORY / "results" / "paper.csv", root / "results")
    return root


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Three steps of local regression in the place of 300, which would take most of the time."""
    monkeypatch.setattr(regress_groups, "__defaults__", (3, *regress_groups.__defaults__[1:]))


@pytest.fixture(autouse=True)
def publishing(monkeypatch):
    """Notebooks write where the pipeline lets them, unless a test takes this away."""
    monkeypatch.setenv(PUBLISH, "1")


def undraw(monkeypatch):
    """Figures are made but not drawn, where a test looks at numbers: drawing takes longer."""
    monkeypatch.setattr(Figure, "tight_layout", lambda self, **options: None)
    monkeypatch.setattr(Figure, "draw_without_rendering", lambda self: None)
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: Path(path).touch())


@pytest.fixture
def undrawn(monkeypatch):
    """As `undraw`, for one test."""
    undraw(monkeypatch)


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def inside():
    """Run code with a folder as the current one and as the root that params.yaml is found in."""
    before = Path.cwd()

    def enter(folder: Path) -> Path:
        os.chdir(folder)
        find_root.cache_clear()
        return folder

    yield enter
    enter(before)


@pytest.fixture
def tiny(tmp_path, inside):
    """The tiny profile in a folder of its own: (root, params)."""
    root = inside(write_tiny_profile(tmp_path))
    return root, load_params()
