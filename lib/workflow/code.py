"""Normalised copies of the code: what a stage depends on, so that prose stays free.

For every notebook (and model) one file with all the code that it runs: its own code cells, then
every module of `ffmerge` that it imports, directly or not, without comments and docstrings.
Editing a sentence changes none of these files, and editing one module changes those of its users.

    python -m workflow.code
"""

import ast
import json
import shutil
from functools import cache
from pathlib import Path

import ffmerge
from study.config import Model, Params, Use, find_root, load_params
from study.corpora import find_fingerprint

LIBRARY = Path(ffmerge.__file__).parent


def write_copies(root: Path, params: Params) -> Path:
    """Write .code/NOTEBOOK.py and .code/MODEL/NOTEBOOK.py for every notebook and model to run.

    A model's copies hold its task and its corpus too, which are found by name at run time, and
    .code/MODEL/data.json says what its data are: the entry of params.yaml and the fingerprint;
    downstream.json says the same of what it is tuned and tested on.
    """
    folder = root / ".code"
    shutil.rmtree(folder, ignore_errors=True)
    for name in params.running:
        (folder / name).mkdir(parents=True)
        for file, use in find_uses(params.models[name]).items():
            fields = {"data"} if file == "data" else set(Use.model_fields)
            described = use.model_dump(include=fields) | {
                "sizes": params.corpora.get(use.data.corpus),
                "fingerprint": find_fingerprint(use.data.path, root),
            }
            (folder / name / f"{file}.json").write_text(json.dumps(described, indent=1) + "\n")
    for notebook in sorted((root / "notebooks").glob("*.ipynb")):
        code = notebook_code(notebook)
        _write(folder / f"{notebook.stem}.py", code, [])
        for name in params.running:
            uses = find_uses(params.models[name])
            if "downstream=True" not in code:
                del uses["downstream"]
            named = [f"study.tasks.{use.task}" for use in uses.values()]
            corpora = [use.data.corpus for use in uses.values() if use.data.corpus]
            named += [f"study.corpora.{corpus}" for corpus in corpora]
            _write(folder / name / f"{notebook.stem}.py", code, named)
    return folder


def find_uses(model: Model) -> dict[str, Use]:
    """What a model is trained and selected on ("data"), and tuned and tested on ("downstream")."""
    return {"data": model, "downstream": model.recovery}


def notebook_code(path: Path) -> str:
    """The code cells of a notebook, normalised.

    Raises:
        ValueError: a cell is not Python.
    """
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    try:
        return normalise("\n".join(sources))
    except SyntaxError as error:
        raise ValueError(
            f"{path.name} holds a code cell that is not Python: {(error.text or '').strip()!r}; "
            "valid are cells without % and ! commands"
        ) from None


@cache
def normalise(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def find_modules(code: str, named: list[str] = ()) -> list[str]:
    """The modules of ffmerge that code uses, directly or through each other.

    Args:
        code: Python source.
        named: modules that study.tasks finds by name; counted if study.tasks is used.
    """
    found: set[str] = set()
    waiting = set(_imports(code))
    while waiting:
        module = waiting.pop()
        if module in found or not _file(module).exists():
            continue
        found.add(module)
        waiting |= _imports(_file(module).read_text())
        if module == "study.tasks":
            waiting |= set(named)
    return sorted(found)


@cache
def _imports(code: str) -> frozenset[str]:
    """Full names of what code imports from ffmerge, the package's face looked through."""
    names, package = set(), set()  # package: what code calls ffmerge itself
    nodes = list(ast.walk(ast.parse(code)))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            package |= {a.asname or a.name for a in node.names if a.name == "ffmerge"}
    for node in nodes:
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in package:
            names.add(f"ffmerge.{node.attr}")
    face = {f"ffmerge.{name}": f"ffmerge.{module}" for name, module in ffmerge._FACE.items()}
    return frozenset(face.get(name, name) for name in names if name.startswith("ffmerge."))


def _file(module: str) -> Path:
    path = LIBRARY.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _write(path: Path, code: str, named: list[str]) -> None:
    parts = [code]
    for module in find_modules(code, named):
        parts.append(f"# {module}\n" + normalise(_file(module).read_text()))
    path.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    try:
        write_copies(find_root(), load_params())
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
