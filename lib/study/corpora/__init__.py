"""The embedded corpora: made from installed packages, the same bytes wherever the pins are same.

`data.dvc` pins every corpus; a missing one is written again when it is needed.
"""

import hashlib
import json
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as parquet
import yaml

from ffmerge.files import replacing
from study.config import Params

if TYPE_CHECKING:  # reading fingerprints is quick without it
    from datasets import Dataset


def ensure_corpus(path: str, params: Params, root: Path) -> Path:
    """The folder of a corpus: made first if it is missing, and checked against data.dvc.

    Args:
        path: such as "data/glyphs"; the name of the folder is the module that writes it.
        params: holds the size of every corpus.
        root: the repository's folder.

    Raises:
        ValueError: the corpus differs from its fingerprint in data.dvc, or from its sizes in
            params.yaml.
    """
    folder = root / path
    made = not folder.exists()
    if made:
        corpus = import_module(f"study.corpora.{folder.name}")
        with replacing(folder) as partial:
            partial.mkdir()
            corpus.write_corpus(partial, **params.corpora[folder.name])
    check_fingerprint(path, root, made)
    sizes = params.corpora[folder.name]
    found = {split: count_rows(folder, split) for split in sizes}
    if found != sizes:
        raise ValueError(
            f"params.yaml: corpora.{folder.name} is {sizes}, but {path} holds {found}; delete "
            f"{path} to have it made anew, then run `dvc commit data.dvc`"
        )
    return folder


def write_split(rows: "Dataset", folder: Path, split: str) -> None:
    """Write the examples of a split as data sets on the hub are stored: one Parquet file."""
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def write_splits(rows: list[dict], folder: Path, **sizes: int) -> None:
    """Write rows as splits, one after the other from the first row on.

    Args:
        rows: as many as all splits take, or more.
        folder: an existing one.
        sizes: split to its number of rows, in the order in which they take them.
    """
    from datasets import Dataset

    start = 0
    for split, n in sizes.items():
        write_split(Dataset.from_list(rows[start : start + n]), folder, split)
        start += n


def count_rows(folder: Path, split: str) -> int:
    """Number of examples in the Parquet files of a split."""
    return sum(parquet.read_metadata(file).num_rows for file in folder.glob(f"{split}-*.parquet"))


def check_fingerprint(path: str, root: Path, made: bool = False) -> None:
    """Compare a corpus with data.dvc.

    Raises:
        ValueError: it differs: altered by hand, or made by other versions of the packages.
    """
    pinned = find_fingerprint(path, root)
    if pinned is None:
        return
    actual = fingerprint(root / path)
    if actual != pinned and made:
        raise ValueError(
            f"{path} was made anew but has fingerprint {actual}, not {pinned} as data.dvc says; "
            "valid are the package versions of requirements.txt and the sizes that it was pinned "
            "with; run `dvc commit data.dvc` to keep the change"
        )
    if actual != pinned:
        raise ValueError(
            f"{path} was altered: its fingerprint is {actual}, not {pinned} as data.dvc says; "
            f"delete {path} to have it made anew, or run `dvc commit data.dvc` to keep the change"
        )


def find_fingerprint(path: str, root: Path) -> str | None:
    """The fingerprint of a corpus in data.dvc, or None where nothing is pinned."""
    file = root / "data.dvc"
    return _read_pins(file.read_text()).get(path) if file.exists() else None


@cache
def _read_pins(text: str) -> dict[str, str | None]:
    return {out["path"]: out.get("md5") for out in yaml.safe_load(text)["outs"]}


def fingerprint(folder: Path) -> str:
    """DVC's hash of a folder: the md5 of the sorted list of its files and their md5s."""
    entries = [
        {
            "md5": hashlib.md5(file.read_bytes()).hexdigest(),
            "relpath": file.relative_to(folder).as_posix(),
        }
        for file in folder.rglob("*")
        if file.is_file()
    ]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"
