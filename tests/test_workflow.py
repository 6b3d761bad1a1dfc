"""Copies of code, settings, stages, executing notebooks; and who may import whom."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import write_tiny_profile
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from test_pipeline import run_here
from test_pipeline import stages as list_runs

import ffmerge
from study.config import load_params
from study.corpora import ensure_corpus, find_fingerprint, fingerprint
from study.places import PUBLISH
from study.sections import Data, Section
from study.settings import find_settings
from workflow import durations
from workflow.code import find_imports, find_modules, normalise, notebook_code, write_copies
from workflow.code import main as write_code
from workflow.execute import execute, main, rebase_links, scrub
from workflow.graph import sort
from workflow.stages import list_stages, write_stages

LIBRARY = Path(ffmerge.__file__).parents[1]


def copies(root):
    folder = write_copies(root, load_params(root))
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.*")}


def edit_notebook(root, stem, change):
    path = root / "notebooks" / f"{stem}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def test_prose_comments_and_docstrings_are_free(tiny):
    root, _ = tiny
    before = copies(root)

    def reword(notebook):
        notebook.cells[0].source += "\nAnother sentence."
        code = next(cell for cell in notebook.cells if cell.cell_type == "code")
        code.source = "# a comment\n" + code.source
        code.execution_count = 7
        code.outputs = [nbformat.v4.new_output("stream", text="saved in JupyterLab")]
        notebook.metadata["kernelspec"] = {"name": "other", "display_name": "Other"}

    edit_notebook(root, "5_finetune", reword)
    assert copies(root) == before
    source = 'def f(x):\n    """Doc."""\n    return x  # why\n'
    assert normalise(source) == normalise('def f(x):\n    """Other."""\n\n\n    return (x)\n')
    assert normalise(source) != normalise("def f(x):\n    return -x\n")


def test_an_edited_cell_changes_only_its_own_notebooks_copy(tiny):
    root, _ = tiny
    before = copies(root)
    edit_notebook(
        root, "3_permutations", lambda nb: nb.cells.append(nbformat.v4.new_code_cell("1"))
    )
    after = copies(root)
    assert {name for name in after if after[name] != before[name]} == {
        "vit-glyphs/3_permutations.py"
    }


def test_copies_that_are_right_are_left_alone_and_others_go(tiny):
    root, params = tiny
    folder = write_copies(root, params)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    (folder / "old-model").mkdir()
    (folder / "old-model" / "1_base.py").write_text("")
    write_copies(root, params)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")} == times
    assert not (folder / "old-model").exists()


def test_a_methods_looks_are_no_code():
    source = 'LOOK = {"color": "red"}\nREFERENCE: str = "x"\nNEEDS = ()\ndef make(): return 1\n'
    assert normalise(source, ("LOOK", "REFERENCE")) == "NEEDS = ()\n\ndef make():\n    return 1"


def test_only_figures_depends_on_the_drawing(repository):
    users = {
        path.stem
        for path in (repository / "notebooks").glob("*.ipynb")
        if any(m.startswith("study.report.") for m in find_modules(notebook_code(path)))
    }
    assert users == {"7_figures"}
    assert "study.finetuning" in find_modules(
        notebook_code(repository / "notebooks/5_finetune.ipynb")
    )


def test_modules_are_followed_through_imports_names_and_the_packages_face():
    named = {"study.tasks": ["study.tasks.images"], "study.corpora": ["study.corpora.glyphs"]}
    modules = find_modules("from study.tasks import load_task", named)
    assert {"study.tasks.images", "study.corpora.glyphs", "study.metrics"} <= set(modules)
    assert "study.tasks.images" not in find_modules("from ffmerge.similarity import cka", named)
    assert "ffmerge.alignment" in find_modules("import ffmerge\nffmerge.merge(model, {})")
    assert "ffmerge.patches" in find_modules("from ffmerge import apply_patch")
    assert "ffmerge.similarity" in find_modules("import ffmerge as f\nf.cka(x, y)")
    assert "study.tasks" in find_modules("import study.tasks.text as text")
    assert find_modules("import torch") == []
    assert find_modules("from study.config import load_params") == []  # its values are settings


def test_relative_imports_are_seen_and_those_for_type_checkers_are_not():
    assert "study.tasks.text" in find_imports("from .text import pad", "study.tasks")
    assert "study.metrics" in find_imports("from ..metrics import Metric", "study.tasks")
    assert "study.tasks.data" in find_imports("from . import data", "study.tasks")
    guarded = "if TYPE_CHECKING:\n    from study.tasks import Score\nx = 1"
    assert find_imports(normalise(guarded)) == frozenset()


def read_copy(root, name):
    return json.loads((root / ".code" / name).read_text())


def test_a_method_goes_into_its_own_copy_only(tiny):
    root, params = tiny
    write_copies(root, params)
    for method in params.methods_of("vit-glyphs"):
        text = (root / f".code/vit-glyphs/4_merges-{method}.py").read_text()
        held = [m for m in params.methods_of("vit-glyphs") if f"# ffmerge.methods.{m}\n" in text]
        assert held == [method]
    for stem in ("5_finetune", "6_evals"):
        assert "# ffmerge.methods." not in (root / f".code/vit-glyphs/{stem}.py").read_text()


def test_a_corpus_is_its_fingerprint_or_else_its_code(tiny):
    root, params = tiny
    write_copies(root, params)
    name = ".code/vit-glyphs/1_base.py"
    assert "# study.corpora.glyphs\n" in (root / name).read_text()  # nothing pins it here
    (root / "data.dvc").write_text("outs:\n- path: data/glyphs\n  md5: abc.dir\n")
    write_copies(root, params)
    assert "# study.corpora.glyphs\n" not in (root / name).read_text()
    assert read_copy(root, "vit-glyphs/1_base.json")["use"]["data"]["fingerprint"] == "abc.dir"


def test_settings_are_resolved_and_what_is_off_is_left_out(tiny):
    root, params = tiny
    found = find_settings("5_finetune", params, root, "vit-glyphs", variant="permute-third")
    assert found["training"]["maximum_gradient_norm"] == 1.0  # a default, written out
    assert found["training"]["steps"] == 4 and found["use"]["data"]["path"] == "data/glyphs"
    assert not {"adapters", "decay_steps", "weight_decay"} & set(found["training"])
    base = find_settings("1_base", params, root, "vit-glyphs")
    assert base["seed"] == 0  # not off: it has no default
    with pytest.raises(ValueError, match="notebook '8_more' has no stage; valid are 0_tour, 1_"):
        find_settings("8_more", params, root, "vit-glyphs")


def test_features_may_come_from_other_data_which_only_their_stage_depends_on(tiny):
    root, params = tiny
    entry = params.model("vit-glyphs")
    features = entry.features.model_copy(update={"data": Data(path="a/sample")})
    other = entry.model_copy(update={"features": features})
    changed = params.model_copy(update={"models": {"vit-glyphs": other}})
    for notebook in ("1_base", "2_activations", "3_permutations", "4_merges"):
        names = {"method": "permute"} if notebook == "4_merges" else {}
        plain, found = (
            find_settings(notebook, p, root, "vit-glyphs", **names) for p in (params, changed)
        )
        assert "a/sample" not in str(plain)
        assert (plain == found) == (notebook != "2_activations"), notebook
    assert plain["use"]["data"]["path"] == "data/glyphs"
    activations = find_settings("2_activations", changed, root, "vit-glyphs")
    assert activations["use"]["data"]["path"] == "a/sample"


def test_the_versions_beside_a_copy_are_of_what_it_imports(tiny):
    root, params = tiny
    write_copies(root, params)
    tuning = read_copy(root, "vit-glyphs/5_finetune-permute-third.json")["versions"]
    assert {"torch", "transformers", "accelerate", "peft", "bitsandbytes"} <= set(tuning)
    aligning = read_copy(root, "vit-glyphs/3_permutations.json")["versions"]
    assert {"torch", "scipy", "numpy"} <= set(aligning) and "bitsandbytes" not in aligning
    assert not {"ruff", "pytest", "dvc", "papermill"} & {*tuning, *aligning}
    assert "+" not in tuning["torch"]


@pytest.fixture
def reads(monkeypatch):
    """(class, field) of every setting that is read while `reads` is there to note it."""
    noted, plain, dump = set(), Section.__getattribute__, Section.model_dump

    def note(section, name, value):
        values = list(value.values()) if isinstance(value, dict) else [value]
        if not any(
            isinstance(v, Section) for v in values
        ):  # a section is not read, but looked into
            owner = next(c for c in type(section).__mro__ if name in c.__annotations__)
            noted.add((owner.__name__, name))

    def get(self, name):
        value = plain(self, name)
        if name in type(self).model_fields:
            note(self, name, value)
        return value

    def dump_all(self, **options):
        for name in type(self).model_fields:
            getattr(self, name)
        return dump(self, **options)

    monkeypatch.setattr(Section, "__getattribute__", get)
    monkeypatch.setattr(Section, "model_dump", dump_all)
    return noted


def test_notebooks_read_no_setting_that_their_stage_does_not_depend_on(
    tmp_path, inside, monkeypatch, reads, undrawn
):
    root = inside(write_tiny_profile(tmp_path, variants=["permute-third"], seeds=[0]))
    params = load_params()
    monkeypatch.setattr("study.config.load_params", lambda root=None: params)
    for notebook, names in list(list_runs(params, "vit-glyphs")):
        names = {name: value for name, value in names.items() if name != "seed"}
        reads.clear()
        find_settings(notebook, params, root, **names)
        listed = set(reads)
        reads.clear()
        run_here(notebook, names)
        assert listed and reads <= listed, (notebook, names)


def test_stages_follow_from_params_yaml(tiny):
    root, params = tiny
    found = list_stages(params)
    assert list(found["base"]) == ["vit-glyphs"]
    merges = found["merges"]["vit-glyphs-permute"]
    assert merges["evidence"] == "models/vit-glyphs/permutations.safetensors"
    assert found["merges"]["vit-glyphs-drop"]["evidence"] == ".code/no_evidence"
    untouched = found["evals"]["vit-glyphs-base"]
    assert (untouched["patch"], untouched["tuned"]) == (".code/no_patch", ".code/no_tuned")
    tuned = found["finetune"]["vit-glyphs-permute-third-0"]
    assert tuned["patch"] == "models/vit-glyphs/patches/permute/permute-third.safetensors"
    assert write_stages(root, params) and not write_stages(root, params)
    written = yaml.safe_load((root / "results/stages.yaml").read_text())
    assert {kind: written[kind] for kind in found} == found
    write_copies(root, params)
    made = {f".code/{path.name}" for path in (root / ".code").glob("no_*")}
    paths = {v for items in found.values() for item in items.values() for v in item.values()}
    assert {path for path in paths if str(path).startswith(".code/no_")} <= made


def test_plain_dvc_repro_says_to_run_again_when_the_stages_have_changed(tiny, monkeypatch, capsys):
    root, _ = tiny
    write_code()
    write_code()
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("DVC_STAGE", "code")
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("seeds:\n- 0\n", "seeds:\n- 7\n", 1))
    write_code()
    assert "results/stages.yaml has changed: run `dvc repro` once more" in capsys.readouterr().out


def test_the_committed_list_of_stages_is_that_of_params_yaml(repository):
    written = yaml.safe_load((repository / "results/stages.yaml").read_text())
    found = list_stages(load_params(repository))
    assert {kind: written[kind] for kind in found} == found


def test_two_stages_of_one_name_are_refused(tmp_path):
    root = write_tiny_profile(tmp_path)
    content = yaml.safe_load((root / "params.yaml").read_text())
    third = {"method": "permute", "ratio": "third"}
    content["recipes"] = {"base": content["recipes"]["base"], "b-c": third, "c": third}
    model = content["models"]["vit-glyphs"] | {"variants": None}
    content |= {"run": ["a", "a-b"], "models": {"a": model, "a-b": model}}
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="stage finetune@a-b-c-0 would be made of"):
        list_stages(load_params(root))


def test_an_unknown_parameter_is_refused_before_anything_runs(tiny, tmp_path):
    root, _ = tiny
    notebook = root / "notebooks" / "5_finetune.ipynb"
    message = r"parameter 'varaint' .* is unknown to 5_finetune.*; valid are model, variant, seed"
    with pytest.raises(ValueError, match=message):
        execute(notebook, tmp_path / "out.ipynb", {"varaint": "permute-third"})
    assert not (tmp_path / "out.ipynb").exists()


def test_an_unknown_notebook_is_refused(tiny, tmp_path):
    root, _ = tiny
    with pytest.raises(ValueError, match="notebook '8_more' is unknown; valid are 0_tour, 1_base"):
        execute(root / "notebooks" / "8_more.ipynb", tmp_path / "out.ipynb", {})


def test_a_missing_kernel_is_explained(tiny, tmp_path, monkeypatch):
    root, _ = tiny

    def missing(self, name):
        raise NoSuchKernel(name)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", missing)
    with pytest.raises(ValueError, match="kernel 'python3' is missing; valid is a Jupyter kernel"):
        execute(root / "notebooks" / "1_base.ipynb", tmp_path / "out.ipynb", {})


def test_a_failing_cell_is_one_sentence_and_never_a_result(tiny):
    root, _ = tiny
    with pytest.raises(SystemExit) as error:
        main(["6_evals", str(root / "out.ipynb"), "-p", "model", "vit-glyph"])
    message = str(error.value)
    assert "\n" not in message and "model 'vit-glyph' is unknown; valid are vit-glyphs" in message
    assert not (root / "out.ipynb").exists() and (root / "out.failed.ipynb").exists()


def test_two_executions_of_the_same_code_have_the_same_bytes():
    def executed(time, progress):
        cell = nbformat.v4.new_code_cell("1 + 1", execution_count=1)
        cell.metadata = {"execution": {"start": time}, "tags": ["parameters"]}
        cell.outputs = [nbformat.v4.new_output("stream", name="stderr", text=progress)]
        cell.outputs.append(nbformat.v4.new_output("stream", name="stdout", text="2"))
        return nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"time": time}})

    a, b = scrub(executed("9:00", "10%")), scrub(executed("9:05", "100%"))
    assert json.dumps(a) == json.dumps(b)
    assert [o.text for o in a.cells[0].outputs] == ["2"]
    assert a.cells[0].metadata == {"tags": ["parameters"]}


START = """
import sys, time
from pathlib import Path
from workflow.execute import execute
name = sys.argv[1]
Path(name).touch()
while len(list(Path().glob("?"))) < 2:  # until the other one is as far
    time.sleep(0.001)
execute(Path("notebooks", f"{name}.ipynb"), Path(f"{name}.ipynb"), {})
"""


def test_two_notebooks_started_at_the_same_moment_in_one_folder_do_not_mix(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name in ("a", "b"):
        code = f"import glob, time\ntime.sleep(1)\nprint({name!r}, glob.glob('*ipc*'))"
        cells = [nbformat.v4.new_code_cell(code)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
        nbformat.write(notebook, tmp_path / f"notebooks/{name}.ipynb")
    started = [subprocess.Popen([sys.executable, "-c", START, n], cwd=tmp_path) for n in "ab"]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    for name in ("a", "b"):
        (answer,) = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4).cells[-1].outputs
        assert answer.text == f"{name} []\n"  # its own, and no sockets in the folder they share


def test_links_in_an_executed_copy_lead_where_they_lead_in_the_source(tmp_path):
    text = "[next](1_base.ipynb), [readme](../README.md#models), ![](../figures/method.png), "
    text += "[web](https://a.b/c), [here](#top), $f(x)[1](2)$"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    copy = Path("results/notebooks/vit-glyphs")
    changed = rebase_links(notebook, Path("notebooks"), copy).cells[0].source
    assert changed == (
        "[next](../../../notebooks/1_base.ipynb), [readme](../../../README.md#models), "
        "![](../../../figures/method.png), [web](https://a.b/c), [here](#top), $f(x)[1](2)$"
    )


def executed(root, monkeypatch, stage=None):
    """Run a notebook that says whether it publishes; what it says."""
    cells = [nbformat.v4.new_code_cell(code) for code in ("model = ''", "import os")]
    cells[0].metadata["tags"] = ["parameters"]
    cells.append(nbformat.v4.new_code_cell(f"print(os.environ.get({PUBLISH!r}))"))
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(notebook, root / "notebooks" / "8_say.ipynb")
    monkeypatch.delenv(PUBLISH)
    if stage:
        monkeypatch.setenv("DVC_STAGE", stage)
    monkeypatch.setenv(durations.HARDWARE, "an abacus")
    output = root / "{braces}" / "8_say.ipynb"
    main(["8_say", str(output), "-p", "model", "vit-glyphs"])
    (answer,) = nbformat.read(output, as_version=4).cells[-1].outputs
    return answer.text.strip()


def test_a_stage_publishes_and_notes_how_long_it_took(tiny, monkeypatch):
    root, _ = tiny
    assert executed(root, monkeypatch, "evals@vit-glyphs-base") == "1"
    assert durations.read(root)["an abacus"]["evals"]["vit-glyphs"] > 0


def test_a_notebook_run_by_hand_publishes_nothing_and_is_not_timed(tiny, monkeypatch):
    root, _ = tiny
    assert executed(root, monkeypatch) == "None"
    assert durations.read(root) == {}


def test_durations_are_told_for_this_machine_or_the_one_that_is_known(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setenv(durations.HARDWARE, "an abacus")
    assert durations.estimate(tmp_path, [("base", "a")]) == "for an unknown time"
    durations.record(tmp_path, "base", "a", 600)
    durations.record(tmp_path, "base", "a", 620)  # much the same: git sees no change
    durations.record(tmp_path, "evals", "a", 15)
    runs = [("base", "a"), ("evals", "a"), ("evals", "a")]
    assert durations.estimate(tmp_path, runs) == "about 10 minutes"
    said = durations.estimate(tmp_path, [*runs, ("new", "a")])
    assert said.endswith("1 more that nobody has timed")
    monkeypatch.setenv(durations.HARDWARE, "a bigger abacus")
    said = durations.estimate(tmp_path, runs)
    assert said == "about 10 minutes (as measured on: an abacus)"
    durations.record(tmp_path, "base", "a", 6000)
    assert durations.estimate(tmp_path, runs) == "about 100 minutes (as measured on: an abacus)"
    assert durations.estimate(tmp_path, runs[:1]) == "about 100 minutes"


def test_no_word_of_missing_widgets_in_lab(repository, tmp_path):
    makefile = (repository / "Makefile").read_text()
    (value,) = [line for line in makefile.splitlines() if line.startswith("export PYTHONWARNINGS")]
    code = "from tqdm import TqdmWarning\nfrom tqdm.notebook import WARN_NOIPYW\nimport warnings\n"
    code += "warnings.warn(WARN_NOIPYW, TqdmWarning)"
    environment = os.environ | {"PYTHONWARNINGS": value.partition(":= ")[2]}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stderr == ""


def read_imports():
    """Every module of lib/ to the full names that it imports, inside functions too."""
    found = {}
    for path in sorted(LIBRARY.glob("*/**/*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        package = parts[:-1]
        name = ".".join(package if parts[-1] == "__init__" else parts)
        found[name] = find_imports(normalise(path.read_text()), ".".join(package))
    return {name: names for name, names in found.items() if name.split(".")[0] in PACKAGES}


PACKAGES = ("ffmerge", "study", "workflow")


def test_packages_import_downwards_only():
    for name, imported in read_imports().items():
        package, tops = name.split(".")[0], {other.split(".")[0] for other in imported}
        assert package != "ffmerge" or not tops & {"study", "workflow"}, name
        assert package != "study" or "workflow" not in tops, name
        insides = {top for top in tops if top.startswith("dvc")}
        assert name == "workflow.graph" or not insides, (name, insides)


def test_no_module_imports_itself_by_way_of_others():
    imports = read_imports()
    needs = {
        name: [other for other in sorted(names) if other in imports and other != name]
        for name, names in imports.items()
    }
    assert set(sort(needs)) == set(imports)  # raises where it goes round in a circle


def test_the_report_is_written_without_torch():
    modules = [name for name in read_imports() if name.startswith("study.report.")]
    code = f"import sys, {', '.join(modules)}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_method_stays_small():
    lines = {
        path: len(path.read_text().splitlines()) for path in (LIBRARY / "ffmerge").rglob("*.py")
    }
    names = ("methods", "ablations", "adapters", "attention", "saving", "cli", "ffmerge")
    parts = {name: {} for name in names}
    for path, n in lines.items():
        parts[path.parent.name][path] = n
    assert len(parts["methods"]) > 20 and max(parts["methods"].values()) <= 120
    assert sum(parts["attention"].values()) <= 370
    assert sum(parts["ffmerge"].values()) <= 5800  # with what only other people's models need
    assert sum(parts["saving"].values()) <= 930 and sum(parts["cli"].values()) <= 1025
    assert sum(parts["ablations"].values()) <= 160 and sum(parts["adapters"].values()) <= 230
    assert max(lines.values()) <= 320


def test_a_missing_corpus_is_made_and_is_the_same_bytes_again(tiny):
    root, params = tiny
    folder = ensure_corpus("data/glyphs", params, root)
    first = fingerprint(folder)
    (root / "data.dvc").write_text(f"outs:\n- path: data/glyphs\n  md5: {first}\n")
    shutil.rmtree(folder)
    assert fingerprint(ensure_corpus("data/glyphs", params, root)) == first
    assert not list((root / "data").glob("*.partial"))


def test_a_corpus_altered_by_hand_is_explained_in_one_sentence(tiny):
    root, params = tiny
    folder = ensure_corpus("data/glyphs", params, root)
    (root / "data.dvc").write_text(f"outs:\n- path: data/glyphs\n  md5: {fingerprint(folder)}\n")
    ensure_corpus("data/glyphs", params, root)
    file = next(folder.glob("test*"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data/glyphs was altered.*delete data/glyphs") as error:
        ensure_corpus("data/glyphs", params, root)
    assert "\n" not in str(error.value)


def test_other_sizes_than_those_of_an_existing_corpus_are_refused(tiny):
    root, params = tiny
    ensure_corpus("data/glyphs", params, root)
    more = params.model_copy(
        update={"corpora": {"glyphs": params.corpora["glyphs"] | {"test": 65}}}
    )
    with pytest.raises(ValueError, match=r"'test': 65}, but data/glyphs holds .*'test': 64}"):
        ensure_corpus("data/glyphs", more, root)


LARGE = ("glyphs", "docs", "pretraining")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in LARGE]


@pytest.mark.parametrize("name", ["cldr", "dialogues", *SLOW])
def test_an_embedded_corpus_is_made_of_the_bytes_that_data_dvc_pins(name, repository, tmp_path):
    shutil.copy(repository / "data.dvc", tmp_path)
    assert find_fingerprint(f"data/{name}", tmp_path)
    ensure_corpus(f"data/{name}", load_params(repository), tmp_path)  # checks the fingerprint


def test_a_cell_that_is_not_python_is_named(tiny):
    root, _ = tiny
    edit_notebook(root, "1_base", lambda nb: nb.cells.append(nbformat.v4.new_code_cell("!ls")))
    with pytest.raises(
        ValueError, match=r"1_base.ipynb holds a code cell that is not Python: '!ls'"
    ):
        copies(root)


def test_the_fingerprint_is_dvcs(repository, tmp_path):
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB
    from dvc_objects.fs import localfs

    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "z.txt").write_text("z")
    (tmp_path / "a" / "b" / "é.txt").write_text("é")
    _, _, obj = build(
        HashFileDB(localfs, str(tmp_path / "store")), str(tmp_path / "a"), localfs, "md5"
    )
    assert fingerprint(tmp_path / "a") == obj.hash_info.value


def test_the_tiny_profile_is_valid(tmp_path):
    assert load_params(write_tiny_profile(tmp_path, variants=[])).variants_of("vit-glyphs")


def test_a_stage_starts_without_the_grammars_of_checks_that_no_notebook_has():
    code = "import workflow.execute, nbformat, sys; assert 'lark' not in sys.modules"
    code += "; nbformat.validate(nbformat.v4.new_notebook())"
    subprocess.run([sys.executable, "-c", code], check=True)
