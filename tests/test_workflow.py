import json
import shutil

import nbformat
import pytest
from conftest import write_tiny_profile
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from study.config import load_params
from study.corpora import ensure_corpus, find_fingerprint, fingerprint
from workflow.code import find_modules, normalise, notebook_code, write_copies
from workflow.execute import execute, main, scrub


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
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"3_permutations.py", "vit-glyphs/3_permutations.py"}


def test_only_figures_depends_on_the_drawing(repository):
    users = {
        path.stem
        for path in (repository / "notebooks").glob("*.ipynb")
        if {"study.report.figures", "study.report.tables"} & set(find_modules(notebook_code(path)))
    }
    assert users == {"7_figures"}
    assert "study.finetuning" in find_modules(
        notebook_code(repository / "notebooks/5_finetune.ipynb")
    )


def test_modules_are_followed_through_imports_names_and_the_packages_face():
    named = ["study.tasks.images", "study.corpora.glyphs"]
    modules = find_modules("from study.tasks import load_task", named)
    assert set(named) <= set(modules) and "study.config" in modules
    assert "study.tasks.images" not in find_modules("from ffmerge.similarity import cka", named)
    assert "ffmerge.alignment" in find_modules("import ffmerge\nffmerge.merge(model, {})")
    assert "ffmerge.merging" in find_modules("from ffmerge import merge")
    assert "ffmerge.similarity" in find_modules("import ffmerge as f\nf.cka(x, y)")
    assert find_modules("import torch") == []


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


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("docs", "pretraining")]


@pytest.mark.parametrize("name", ["glyphs", "cldr", "dialogues", *SLOW])
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
    assert load_params(write_tiny_profile(tmp_path, ablations=[])).ablations == []
