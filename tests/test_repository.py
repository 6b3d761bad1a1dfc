"""What is in git: sources without outputs, results that belong to the code, pictures that exist."""

import re

import nbformat
import pandas as pd
import pytest
import yaml

from workflow.code import normalise

STEMS = [
    "0_tour",
    "1_base",
    "2_activations",
    "3_permutations",
    "4_merges",
    "5_finetune",
    "6_evals",
    "7_figures",
]


def code_of(path):
    """The code cells of a notebook, papermill's own cell left out."""
    cells = nbformat.read(path, as_version=4).cells
    return [
        normalise(cell.source)
        for cell in cells
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])
    ]


@pytest.mark.parametrize("stem", STEMS)
def test_source_notebooks_carry_no_outputs_and_define_no_algorithms(repository, stem):
    notebook = nbformat.read(repository / "notebooks" / f"{stem}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "class " not in "\n".join(cell.source for cell in code)
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == (0 if stem == "7_figures" else 1)
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert len(prose) >= 4 and prose[0].source.startswith(f"# {stem[0]} · ")


@pytest.mark.parametrize("stem", STEMS)
def test_executed_copies_belong_to_their_sources(repository, stem):
    copies = [
        path
        for path in (repository / "results" / "notebooks").rglob(f"{stem}*.ipynb")
        if "failed" not in path.name
    ]
    assert copies
    for copy in copies:
        assert code_of(copy) == code_of(repository / "notebooks" / f"{stem}.ipynb"), copy
        cells = nbformat.read(copy, as_version=4).cells
        assert any(cell.get("outputs") for cell in cells)


def test_the_readmes_table_is_the_generated_one(repository):
    readme = (repository / "README.md").read_text()
    shown = readme.split("<!-- results -->")[1].split("<!-- /results -->")[0].strip()
    assert shown == (repository / "figures" / "results.md").read_text().strip() != ""


def test_every_file_that_the_readme_names_exists(repository):
    targets = re.findall(r"\]\(([^)#]+)\)", (repository / "README.md").read_text())
    assert len(targets) > 15
    missing = [t for t in targets if not (repository / t).exists()]
    assert missing == []


def test_the_environment_has_one_source_of_truth(repository):
    conda = yaml.safe_load((repository / "environment.yml").read_text())
    assert conda["dependencies"][-1] == {"pip": ["-r requirements.txt"]}
    lines = (repository / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith(("#", "-e"))]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", pin) for pin in pins)


def test_a_third_merged_and_tuned_keeps_the_accuracy(repository):
    results = pd.read_csv(repository / "results" / "results.csv")
    part = results[(results.model == "vit-glyphs") & (results.precision == "float32")]
    base = part[part.variant == "base"].value.item()
    tuned = part[(part.variant == "permute-third") & (part.phase == "tuned")].value
    assert base >= 84 and len(tuned) == 3
    assert tuned.mean() >= 0.985 * base


def test_the_text_models_have_something_to_lose_and_travel_light(repository):
    results = pd.read_csv(repository / "results" / "results.csv")
    base = results[(results.variant == "base") & (results.precision == "float32")]
    scores = base.set_index(["model", "metric"]).value
    assert scores["marian-cldr", "BLEU"] >= 90 and scores["gpt2-docs", "perplexity"] <= 26.2
    sizes = base[base.phase == "base"].groupby("model").bytes.first()
    assert len(sizes) == 4 and sizes.sum() <= 40e6
