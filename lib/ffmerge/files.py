"""Files and folders that are written whole or not at all."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write a file or a folder, which takes the place of `path` once all is written.

    Args:
        path: replaced if it exists; its folder is made if it does not.

    Invariant: after an error `path` is what it was; after a kill it is so at the next call.
    """
    partial, old = (path.with_name(path.name + suffix) for suffix in (".partial", ".old"))
    path.parent.mkdir(parents=True, exist_ok=True)
    _restore(old, path)  # what a killed run has left
    remove(partial)
    try:
        yield partial
        if path.is_dir():  # a folder that holds something cannot be replaced in one step
            path.rename(old)
        partial.replace(path)
    finally:
        _restore(old, path)
        remove(partial)


def _restore(old: Path, path: Path) -> None:
    """Put what was there before back, unless something has taken its place."""
    if old.exists() and not path.exists():
        old.rename(path)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_json(path: Path):
    """Read a small result."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(value, path: Path) -> None:
    """Write a small result; all of it, or nothing."""
    with replacing(path) as partial:
        text = json.dumps(value, indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
