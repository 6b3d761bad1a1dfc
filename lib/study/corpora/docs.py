"""Docs: the docstrings of the scientific packages that the environment pins.

WikiText's counterpart for a laptop: long, edited, technical English. The packages are read with
`ast`, never imported; a document is one docstring.
"""

import ast
import random
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from study.corpora import write_splits

PACKAGES = ("numpy", "scipy", "pandas", "matplotlib", "torch", "networkx", "sympy")
SHORTEST = 120  # characters; shorter ones say little more than the name


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Write one Parquet file per split, column `text`.

    Args:
        folder: an existing, empty folder.
        train, validation, test: number of documents; a document is in one split only.

    Raises:
        ValueError: fewer documents than asked for.
    """
    documents = read_docstrings()
    if train + validation + test > len(documents):
        raise ValueError(
            f"params.yaml: corpora.docs asks for {train + validation + test} documents; the "
            f"installed packages hold {len(documents)}"
        )
    rows = [{"text": text} for text in documents]
    write_splits(rows, folder, validation=validation, test=test, train=train)


def read_docstrings() -> list[str]:
    """Every distinct docstring of `PACKAGES`, their tests left out, in one fixed random order."""
    found: dict[str, None] = {}  # a dictionary keeps the order, and each docstring once
    for package in PACKAGES:
        root = Path(find_spec(package).origin).parent
        files = sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix())
        for file in tqdm(files, desc=f"docstrings of {package}", unit="file", leave=False):
            if "test" not in file.relative_to(root).as_posix():
                found |= dict.fromkeys(_docstrings(file))
    documents = list(found)
    random.Random(0).shuffle(documents)
    return documents


def _docstrings(file: Path) -> list[str]:
    """The long docstrings of one source file; none if it is not Python of this version."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in texts if text and len(text) > SHORTEST]
