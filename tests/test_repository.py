"""What is in git: sources without outputs, results that belong to the code, pages that keep what
they promise: links, commands, examples, numbers."""

import re

import nbformat
import pandas as pd
import pytest
import yaml
from scipy import stats

from study.config import load_params
from study.report.claims import Scores
from study.report.estimates import estimate
from study.report.paper import read_paper
from study.report.results import measure_sizes, select_metric, summarise
from study.report.scores import measure_gains, read_windows
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
    "8_beyond",
    "9_your_model",
]
PAGES = ["README.md", "CONTRIBUTING.md", "docs/*.md"]
MODELS = ["vit-glyphs", "gpt2-docs", "marian-cldr", "olmo-dialogues"]


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


def find_pages(repository):
    return [page for pattern in PAGES for page in sorted(repository.glob(pattern))]


def read(path):
    return path.read_text(encoding="utf-8")


def test_the_readmes_table_is_the_generated_one(repository):
    shown = read(repository / "README.md").split("<!-- results -->")[1]
    shown = shown.split("<!-- /results -->")[0].strip()
    assert shown == read(repository / "figures" / "results.md").strip() != ""
    assert sum(line.startswith("|") for line in shown.splitlines()) <= 2 + 10


def test_every_file_that_a_page_names_exists(repository):
    pages = find_pages(repository)
    assert len(pages) >= 5
    for page in pages:
        targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(page))
        targets = [target for target in targets if not target.startswith("http")]
        assert len(targets) > (15 if page.name == "README.md" else 0)
        missing = [target for target in targets if not (page.parent / target).exists()]
        assert missing == [], page.name


def test_every_file_that_an_executed_copy_names_exists(repository):
    """Copies lie deeper than their sources, so that links are written anew."""
    copies = sorted((repository / "results" / "notebooks").rglob("*.ipynb"))
    seen = 0
    for copy in (path for path in copies if "failed" not in path.name):
        cells = nbformat.read(copy, as_version=4).cells
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose)
        targets = [target for target in targets if not target.startswith("http")]
        missing = [target for target in targets if not (copy.parent / target).exists()]
        assert missing == [], copy
        seen += len(targets)
    assert seen


def test_every_heading_that_a_page_links_to_exists(repository):
    for page in find_pages(repository):
        for target, heading in re.findall(r"\]\(([^)#]*)#([^)]+)\)", read(page)):
            text = read(page.parent / target if target else page)
            headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert heading in slugs, f"{page.name}: {target}#{heading}"


def test_every_command_of_make_that_a_page_names_exists(repository):
    targets = set(re.findall(r"^([a-z-]+):", read(repository / "Makefile"), re.MULTILINE))
    for page in find_pages(repository):
        named = set(re.findall(r"`make ([a-z-]+)", read(page)))
        assert named <= targets, page.name


def test_the_readmes_recipe_is_that_of_params_yaml_with_more_steps(repository):
    (recipe,) = re.findall(r"```yaml\n(.*?)```", read(repository / "README.md"), re.DOTALL)
    params = yaml.safe_load(read(repository / "params.yaml"))
    for name, changed in yaml.safe_load(recipe)["recipes"].items():
        steps = changed.pop("finetune")["steps"]
        assert changed == params["recipes"][name]
        tunings = [params["models"][model].get("finetune") for model in params["run"]]
        assert all(steps > tuning["steps"] for tuning in tunings if tuning)


def test_the_citation_names_this_companion_and_the_paper(repository):
    citation = yaml.safe_load(read(repository / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))
    assert f'version = "{citation["version"]}"' in read(repository / "pyproject.toml")
    assert read(repository / "LICENSE").startswith(f"{citation['license']} License")
    paper = citation["preferred-citation"]
    assert [a["family-names"] for a in paper["authors"]] == ["Verma", "Murray", "Duh"]
    assert paper["title"] == "Merging Feed-Forward Sublayers for Compressed Transformers"


def test_the_environment_has_one_source_of_truth(repository):
    conda = yaml.safe_load((repository / "environment.yml").read_text())
    assert conda["dependencies"][-1] == {"pip": ["-r requirements.txt"]}
    lines = (repository / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith(("#", "-e"))]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", pin) for pin in pins)
    assert conda["dependencies"][:2] == ["python=3.11", "pip"]  # what the Makefile asks for
    assert "(3, 11)" in (repository / "Makefile").read_text()
    page = (repository / "docs" / "paper-scale.md").read_text()
    (torch,) = (pin for pin in pins if pin.startswith("torch=="))
    assert f"pip install {torch} --index-url https://download.pytorch.org/whl/cu" in page


@pytest.fixture
def results(repository):
    return pd.read_csv(repository / "results" / "results.csv")


class Quotes:
    """What a page quotes of one model."""

    def __init__(self, repository, results, model):
        self.results, self.model, self.params = results, model, load_params(repository)
        paper = read_paper(repository / "results" / "paper.csv")
        self.windows = read_windows([repository], model, self.params)
        self.scores = Scores(results, paper, self.windows, self.params, model)
        self.reference = self.scores.reference.value

    def mean(self, variant):
        return self.scores.raw(variant).mean()

    def kept(self, variant):
        return self.scores.kept(variant).mean()

    def saved(self, variant):
        return 100 * (1 - summarise(self.scores.float).parameter_ratio[variant])

    def size(self, variant, int8):
        """In percent of the uncompressed model's bytes."""
        table = measure_sizes(self.results, self.model, self.params)
        return table.set_index(["variant", "int8"])["size"][variant, int8]

    def above(self, better, worse):
        """The difference in quality kept, with its interval: "+6.2 ± 1.3 %"."""
        d = estimate((1, self.scores.kept(better)), (-1, self.scores.kept(worse)))
        return f"{d.value:+.1f} ± {d.margin:.1f} %".replace("-", "−")


def test_the_readme_quotes_the_results(repository, results):
    text = " ".join(read(repository / "README.md").split())
    quotes = {model: Quotes(repository, results, model) for model in MODELS}
    saved = [q.saved("permute-third") for q in quotes.values()]
    kept = [q.kept("permute-third") for q in quotes.values()]
    gpt2, marian, vit = (quotes[m] for m in ("gpt2-docs", "marian-cldr", "vit-glyphs"))
    lead = gpt2.kept("permute-third") - gpt2.kept("drop-sixth")
    gains = [gain for q in quotes.values() for gain in measure_gains(q.windows).gain]
    for quote in (
        f"saves {min(saved):.0f} to {max(saved):.0f} % of all parameters",
        f"keeps {min(kept):.0f} to {max(kept):.1f} % of the quality",
        f"{marian.saved('drop-third'):.1f} % of its parameters",
        f"six FF sublayers {marian.saved('permute-half'):.1f} %",
        f"at {sum(gain > 0 for gain in gains)} of {len(gains)} places",
        f"not {gpt2.mean('drop-sixth'):.2f})",
        f"not by {lead:.1f} %",
        f"at {vit.size('permute-third', True):.0f} % of its bytes",
    ):
        assert quote in text


@pytest.mark.parametrize("model", MODELS)
def test_the_findings_quote_the_results(repository, results, model):
    text = read(repository / "docs" / "findings.md")
    quotes = Quotes(repository, results, model)
    third, loss = quotes.mean("permute-third"), quotes.above("permute-third", "base-tuned")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{model}` | −")]
    assert f"{loss} (" in row and f"{quotes.reference:.2f} → {third:.2f})" in row
    assert row.endswith(f"| {quotes.saved('permute-third'):.1f} % |")
    drops = [("permute-third", "drop-sixth"), ("permute-half", "drop-third")]
    for merge, drop in drops if model != "olmo-dialogues" else [("permute-third", "drop-third")]:
        difference = quotes.above(merge, drop)
        merged, dropped = (f"−{quotes.saved(name):.1f} % |" for name in (merge, drop))
        assert any(merged in x and dropped in x and difference in x for x in text.splitlines())


def test_precision_makes_no_difference_that_three_seeds_show(repository, results):
    """One variant of each model, tuned in both precisions; docs/hardware.md says the same."""
    text = read(repository / "docs" / "hardware.md")
    tables = {p: pd.read_csv(repository / "results" / f"{p}.csv") for p in ("bfloat16", "float32")}
    keys = ["model", "variant", "metric"]
    found = {p: dict(list(table.groupby(keys))) for p, table in tables.items()}
    assert set(found["bfloat16"]) == set(found["float32"])
    for (model, variant, metric), half in found["bfloat16"].items():
        full = found["float32"][model, variant, metric]
        assert half.seed.tolist() == full.seed.tolist() == [0, 1, 2]
        d = estimate((1, full.value), (-1, half.value))
        assert abs(d.value) < d.margin
        p = stats.ttest_ind(full.value, half.value, equal_var=False).pvalue
        seeds = (", ".join(f"{x:.2f}" for x in sample.value) for sample in (half, full))
        assert f"| `{model}` | {metric} | {' | '.join(seeds)} | {p:.2f} |" in text
        rows = select_metric(results, model)
        rows = rows[(rows.variant == variant) & (rows.phase == "tuned")]
        (precision,) = rows.trained_in.unique()  # all of a model's tunings are of one
        assert rows.value.tolist() == found[precision][model, variant, metric].value.tolist()


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
    assert len(sizes[MODELS]) == 4 and sizes[MODELS].sum() <= 40e6  # the fifth is fetched
