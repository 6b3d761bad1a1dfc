"""What stages depend on besides data: copies of their code without prose, and their settings.

    python -m workflow.code

For every stage, `.code/` holds a copy of the code that it runs (its notebook's cells, then every
module of `ffmerge` and `study` that they reach, without comments and docstrings), and beside it
the settings that it uses, resolved, with the versions of the packages that decide numbers.
Editing a sentence changes none of these files, and editing one module changes those of its users.
"""

import ast
import json
import os
from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ffmerge
import study
from study.config import Params, find_root, load_params
from study.corpora import find_fingerprint
from study.settings import find_settings, find_uses
from workflow import stages

FOLDERS = {package.__name__: Path(package.__path__[0]) for package in (ffmerge, study)}
SETTINGS = {  # their values lie beside the copies; where files lie, dvc.yaml says
    f"study.{name}" for name in ("checks", "config", "leaves", "places", "sections", "settings")
}
LOOKS = ("LOOK", "REFERENCE")  # of a method: only figures shows them, and has them as settings
NUMERIC = {  # imported name: package whose version may decide a number
    "accelerate": "accelerate",
    "bitsandbytes": "bitsandbytes",
    "datasets": "datasets",
    "numpy": "numpy",
    "peft": "peft",
    "rouge_score": "rouge-score",
    "sacrebleu": "sacrebleu",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
}
BEHIND = {  # what transformers hands on to another package
    "transformers.Trainer": "accelerate",
    "transformers.AutoTokenizer": "tokenizers",
}


def write_copies(root: Path, params: Params) -> Path:
    """Renew `.code/`: files that are as they should be are left alone, others go.

    Raises:
        ValueError: a notebook with a cell that is not Python.
    """
    folder, files = root / ".code", make_files(root, params)
    for name, text in files.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in files:
            path.unlink()
    return folder


def make_files(root: Path, params: Params) -> dict[str, str]:
    """What `.code/` holds: names of files to their texts."""
    files, versions = {Path(name).name: "nothing\n" for name in stages.NOTHING.values()}, {}

    def add(stem: str, place: str = "", model: str | None = None, **names) -> None:
        """Names of a method go into both files, those of a variant into the settings'."""
        copy = f"{place}{stem}" + (f"-{names['method']}" if "method" in names else "")
        if copy not in versions:
            code = notebook_code(root / "notebooks" / f"{stem}.ipynb")
            modules = find_modules(code, _find_named(stem, root, params, model, **names))
            texts = {name: _read_module(name) for name in modules}
            parts = [code, *(f"# {name}\n{text}" for name, text in texts.items())]
            files[f"{copy}.py"] = "\n\n".join(parts) + "\n"
            versions[copy] = find_versions(code, *texts.values())
        settings = find_settings(stem, params, root, model, **names)
        settings["versions"] = versions[copy]
        path = f"{copy}-{names['variant']}" if "variant" in names else copy
        files[f"{path}.json"] = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"

    tour = stages.describe_tour(params)
    add("0_tour", model=tour["model"], showcase=tour["showcase"])
    for model in params.run:
        place = f"{model}/"
        for stem in ("1_base", "2_activations", "3_permutations"):
            add(stem, place, model)
        for method in params.methods_of(model):
            add("4_merges", place, model, method=method)
        if params.model(model).base.is_trained_here:
            add("8_beyond", place, model)
        for variant in params.variants_of(model):
            if params.seeds_of(model, variant):
                add("5_finetune", place, model, variant=variant)
            add("6_evals", place, model, variant=variant)
    add("7_figures")
    add("9_your_model")
    return files


def notebook_code(path: Path) -> str:
    """The code cells of a notebook, normalised.

    Raises:
        ValueError: a cell is not Python, or the file is not a notebook.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(
            f"notebooks/{path.name} is missing or damaged; `git checkout notebooks` brings it back"
        ) from None
    try:
        return normalise("\n".join(sources))
    except SyntaxError as error:
        raise ValueError(
            f"{path.name} holds a code cell that is not Python: {(error.text or '').strip()!r}; "
            "valid are cells without % and ! commands"
        ) from None


@cache
def normalise(source: str, leave_out: tuple[str, ...] = ()) -> str:
    """Python source without comments, docstrings, layout and imports for type checkers.

    Args:
        source: Python.
        leave_out: names whose assignments at module level are left out too.
    """
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not _is_free(node, leave_out)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def find_modules(code: str, named: Mapping[str, Collection[str]] | None = None) -> list[str]:
    """The modules of ffmerge and study that code uses, directly or through each other.

    Args:
        code: Python source.
        named: module to those that it finds by name; they count where that module does.
    """
    found: set[str] = set()
    waiting = set(find_imports(code))
    while waiting:
        module = waiting.pop()
        if module in found or module in SETTINGS or not _file(module):
            continue
        found.add(module)
        waiting |= find_imports(_read_module(module), _package_of(module))
        waiting |= set((named or {}).get(module, ()))
    return sorted(found)


def find_versions(*codes: str) -> dict[str, str]:
    """The packages that code imports and whose versions decide numbers, without local tags."""
    names = set().union(*(find_imports(code) for code in codes))
    packages = {NUMERIC.get(name.partition(".")[0]) for name in names}
    packages |= {package for name, package in BEHIND.items() if name in names}
    return {package: _find_version(package) for package in sorted(packages - {None})}


@cache
def _find_version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "not installed"


@cache
def find_imports(code: str, package: str = "") -> frozenset[str]:
    """Full names of all that code imports, the face of ffmerge looked through.

    Args:
        code: Python source.
        package: what a relative import starts from.
    """
    names, called = set(), set()  # called: what code calls ffmerge itself
    nodes = list(ast.walk(ast.parse(code)))
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            called |= {a.asname or a.name for a in node.names if a.name == "ffmerge"}
    for node in nodes:
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in called:
            names.add(f"ffmerge.{node.attr}")
    face = {f"ffmerge.{name}": f"ffmerge.{module}" for name, module in ffmerge._FACE.items()}
    names = {face.get(name, name) for name in names}
    packages = {name.rpartition(".")[0] for name in names if name.count(".") > 1}
    return frozenset(names | packages)  # importing a.b.c runs a.b too


@cache
def _read_module(name: str) -> str:
    leave_out = LOOKS if name.startswith("ffmerge.methods.") else ()
    return normalise(_file(name).read_text(encoding="utf-8"), leave_out)


@cache
def _file(module: str) -> Path | None:
    package, *parts = module.split(".")
    if package not in FOLDERS or not parts:
        return None
    path = FOLDERS[package].joinpath(*parts)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path if path.exists() else None


def _package_of(module: str) -> str:
    return module if _file(module).name == "__init__.py" else module.rpartition(".")[0]


def _find_named(
    stem: str, root: Path, params: Params, model: str | None, method: str | None = None, **other
) -> dict[str, list[str]]:
    """The modules that a run of a notebook finds by name.

    An embedded corpus is its fingerprint; only one that data.dvc does not pin is its code.
    """
    models = [params.model(name) for name in (model, other.get("showcase")) if name]
    uses = [use for entry in models for use in find_uses(stem, entry).values()]
    corpora = [use.data.corpus for use in uses if use.data.corpus]
    loose = [name for name in corpora if not find_fingerprint(f"data/{name}", root)]
    return {
        "study.tasks": [f"study.tasks.{use.task}" for use in uses],
        "study.corpora": [f"study.corpora.{name}" for name in loose],
        "ffmerge.methods": [f"ffmerge.methods.{name}" for name in _list_methods(stem, method)],
    }


def _list_methods(stem: str, method: str | None) -> tuple[str, ...]:
    if stem == "9_your_model":
        return "neurons_obs_refit", "permute"
    return (method,) if method else ()


def _is_free(node: ast.stmt, leave_out: tuple[str, ...]) -> bool:
    if isinstance(node, ast.If):
        return getattr(node.test, "id", None) == "TYPE_CHECKING" and not node.orelse
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(getattr(target, "id", None) in leave_out for target in targets)


def main() -> None:
    """Renew results/stages.yaml and `.code/`."""
    try:
        root, params = find_root(), load_params()
        changed = stages.write_stages(root, params)
        write_copies(root, params)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    if changed and "DVC_STAGE" in os.environ:  # DVC had read it before
        print(f"{stages.FILE} has changed: run `dvc repro` once more for the stages it names")


if __name__ == "__main__":
    main()
