"""The notebooks themselves, executed in order on the tiny profile."""

import contextlib
import io
import os
import shutil
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from conftest import write_tiny_profile

from study.config import find_root, load_params
from study.places import PUBLISH, SCRATCH
from study.records import COLUMNS
from workflow.code import notebook_code
from workflow.execute import main

MODEL = "vit-glyphs"
ONE = {"variants": ["permute-third"], "seeds": [0]}
MANY = ["base-tuned", "vanilla-third", "permute-third", "permute-most", "drop-third"]
TUNED = ["base-tuned", "permute-third", "drop-third"]  # each takes as long as all evaluations


def stages(params, *models, beyond=()):
    """(notebook, parameters) of every stage, in order; notebook 8, the longest, for some models."""
    for name in models:
        model = {"model": name}
        for notebook in ("1_base", "2_activations", "3_permutations"):
            yield notebook, model
        for method in params.methods_of(name):
            yield "4_merges", model | {"method": method}
        if name in beyond:
            yield "8_beyond", model
        for variant in params.variants_of(name):
            for seed in params.seeds_of(name, variant):
                yield "5_finetune", model | {"variant": variant, "seed": seed}
            yield "6_evals", model | {"variant": variant}
    yield "7_figures", {}
    for name in models:
        yield "0_tour", {"model": name}


def run_here(notebook, parameters):
    """Run a notebook's code in this process: what papermill does, without starting a kernel."""
    path = find_root() / "notebooks" / f"{notebook}.ipynb"
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    names, quiet = {}, io.StringIO()
    clean = matplotlib.rc_context(matplotlib.rcParamsDefault)  # a kernel starts without a style
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), clean:
        for cell in cells:
            exec(compile(cell.source, f"{notebook}.ipynb", "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= parameters
    plt.close("all")  # as a kernel that ends does


def run_all(folder):
    """The whole tiny pipeline, a variant of every kind, from nothing."""
    before = os.getcwd()
    os.environ[PUBLISH] = "1"
    root = write_tiny_profile(folder, variants=MANY, tuned=TUNED, seeds=[0, 1])
    os.chdir(root)
    find_root.cache_clear()
    for notebook, parameters in stages(load_params(root), MODEL, beyond=[MODEL]):
        if notebook != "0_tour":
            run_here(notebook, parameters)
    os.chdir(before)
    del os.environ[PUBLISH]
    find_root.cache_clear()
    return root


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A tiny pipeline that has run."""
    return run_all(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """The same once more."""
    return run_all(tmp_path_factory.mktemp("second"))


@pytest.mark.slow
def test_the_same_seed_gives_identical_results_twice(first, second):
    files = [p.relative_to(first) for p in (first / "results").rglob("*.*") if p.is_file()]
    assert len(files) > 20
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


@pytest.mark.slow
def test_figures_and_tables_are_the_same_bytes_twice(first, second):
    files = [p.relative_to(first) for p in (first / "figures").iterdir()]
    made = {"method.svg", "table10.csv", "table1.md", "results.md", "beyond.md", "bits.md"}
    assert made <= {f.name for f in files}
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_every_variant_and_seed_is_in_the_results(first):
    results = pd.read_csv(first / "results" / "results.csv")
    assert set(results.variant) == {"base", *MANY}
    tuned = (
        results[(results.phase == "tuned") & (results.precision == "float32")]
        .groupby("variant")
        .seed.apply(list)
        .to_dict()
    )
    assert tuned == {variant: [0, 1] for variant in TUNED}
    removed = results.groupby("variant")[["removed", "kind"]].first()
    assert removed.loc["permute-most"].tolist() == [5, "FF sublayers"]
    assert removed.loc["drop-third"].tolist() == [2, "layers"]
    merged = results[results.method.isin(["permute", "vanilla"])]
    assert merged.groupby("removed").parameters.nunique().eq(1).all()


def test_every_state_of_a_variant_is_in_the_results(first):
    results = pd.read_csv(first / "results" / "results.csv")
    assert list(results) == [*COLUMNS, "trained_in", "hardware"]
    results = results[results.variant.isin(["base", "permute-third"])]
    assert results.phase.tolist() == [*["base"] * 3, "merged", *["tuned"] * 6]
    whole, low = ["float32"], ["int8", "nf4"]
    assert results.precision.tolist() == [*whole, *low, *whole, *whole * 2, *low * 2]
    base, base8, _, merged, tuned, _, tuned8, *_ = results.to_dict("records")
    assert merged["parameters"] == tuned["parameters"] < base["parameters"]
    assert tuned8["bytes"] < min(tuned["bytes"], base8["bytes"]) < base["bytes"]
    assert tuned["n_examples"] == 64
    figure = first / "figures" / f"fig2-removed-{MODEL}.png"
    assert figure.stat().st_size > 10_000


SEED = ["-p", "model", MODEL, "-p", "variant", "permute-third", "-p", "seed", "1"]


@pytest.mark.parametrize(
    ("notebook", "options", "made"),
    [
        ("5_finetune", SEED, f"models/{MODEL}/tuned/permute-third/1/model.safetensors"),
        pytest.param("7_figures", [], "results/results.csv", marks=pytest.mark.slow),
    ],
)
def test_papermill_computes_the_same_in_a_kernel(first, tmp_path, inside, notebook, options, made):
    root = inside(Path(shutil.copytree(first, tmp_path / "copy")))
    (root / made).unlink()
    executed = root / "executed" / f"{notebook}.ipynb"
    main([notebook, str(executed), *options])
    cells = nbformat.read(executed, as_version=4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
    assert (root / made).read_bytes() == (first / made).read_bytes()


@pytest.fixture
def finished(first, inside):
    """The folder of a tiny pipeline that has run."""
    return inside(first)


def read_all(root):
    files = [path for part in ("results", "models") for path in (root / part).rglob("*")]
    return {path: path.read_bytes() for path in files if path.is_file()}


EXERCISES = [
    {},
    {"a": 1, "b": 4},
    {"a": 4, "b": 1},
    {"a": 2, "b": 2},
    {"first": 0, "last": 5},
    {"first": 4, "last": 5, "showcase": "vit-glyphs"},
]


@pytest.mark.parametrize("values", EXERCISES, ids=str)
def test_the_tour_survives_its_own_exercises(finished, values, monkeypatch):
    monkeypatch.delenv(PUBLISH)
    before = read_all(finished)
    run_here("0_tour", {"model": MODEL} | values)
    assert read_all(finished) == before  # and touches nothing


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": 6}, "a is 6; valid are layers 0 to 5 of vit-glyphs"),
        ({"b": -1}, "b is -1; valid are layers 0 to 5"),
        ({"first": 1.5}, "first is 1.5; valid are layers"),
        ({"first": 3, "last": 3}, "window 3-3 is not valid; valid is a first layer below"),
        ({"model": "vit"}, "model 'vit' is unknown; valid are vit-glyphs"),
    ],
)
def test_the_tour_answers_wrong_values_in_one_sentence(finished, values, message):
    with pytest.raises(ValueError, match=message) as error:
        run_here("0_tour", {"model": MODEL} | values)
    assert "\n" not in str(error.value)


def test_a_notebook_run_by_hand_writes_to_scratch_and_trains_no_base_unasked(finished, monkeypatch):
    monkeypatch.delenv(PUBLISH)
    before = read_all(finished)
    trained = []
    monkeypatch.setattr("study.finetuning.finetune", lambda *args, **kwargs: trained.append(args))
    for notebook in ("1_base", "2_activations", "3_permutations"):
        run_here(notebook, {"model": MODEL})
    assert trained == []
    monkeypatch.undo()
    monkeypatch.delenv(PUBLISH, raising=False)
    run_here("4_merges", {"model": MODEL, "method": "permute"})
    run_here("5_finetune", {"model": MODEL, "variant": "permute-third", "seed": 7})
    run_here("6_evals", {"model": MODEL, "variant": "permute-third"})
    assert read_all(finished) == before
    made = pd.read_csv(finished / SCRATCH / f"results/models/{MODEL}/evals/permute-third.csv")
    assert made[made.phase == "tuned"].seed.unique().tolist() == [7]  # whatever seeds are there


NEEDS = [
    ("0_tour", {}, "models/vit-glyphs/base is missing; run notebook 1_base first"),
    ("2_activations", {}, "models/vit-glyphs/base is missing; run notebook 1_base first"),
    ("3_permutations", {}, "features.safetensors is missing; run notebook 2_activations first"),
    ("4_merges", {}, "models/vit-glyphs/base is missing; run notebook 1_base first"),
    ("5_finetune", {}, "models/vit-glyphs/base is missing; run notebook 1_base first"),
    ("6_evals", {}, "models/vit-glyphs/base is missing; run notebook 1_base first"),
    ("8_beyond", {}, "models/vit-glyphs/base is missing; run notebook 1_base first"),
]


@pytest.mark.parametrize(("notebook", "values", "message"), NEEDS)
def test_a_missing_input_says_which_notebook_makes_it(tiny, notebook, values, message):
    with pytest.raises(FileNotFoundError, match=message):
        run_here(notebook, {"model": MODEL} | values)


def test_every_parameter_that_dvc_passes_exists_in_its_notebook(repository):
    import re

    text = re.sub(r"\s+", " ", (repository / "dvc.yaml").read_text())
    calls = re.findall(r"workflow\.execute (\w+) (\S+)((?: -p \w+ \S+)*)", text)
    assert len(calls) >= 8
    for stem, _, options in calls:
        source = notebook_code(repository / "notebooks" / f"{stem}.ipynb")
        for name in re.findall(r"-p (\w+)", options):
            assert f"\n{name} = " in source or f"\n{name}, " in source, (stem, name)
