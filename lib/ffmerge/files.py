"""Files and folders that are written whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no locks that end with their process
    fcntl = None

STAGING = ".ffmerge-save"


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


@contextmanager
def filling(folder: Path, own: re.Pattern[str], first: str) -> Iterator[Path]:
    """A place to write a folder's files, which take the place of its own once all are written.

    They are put in place one by one, inside the folder: it may be the current one, a mount point,
    or hold other files, which stay as they are.

    Args:
        folder: made if it is not there; checked by the caller.
        own: matches the names of files that go, beside those that are replaced.
        first: the file without which the folder cannot be used. It goes first and comes last, so
            that nobody ever reads half of the old and half of the new.

    Raises:
        BlockingIOError: another process is saving into the folder.

    Invariant: after an error `folder` is what it was; after a kill it is so after `restore`.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / STAGING
    done = False
    with _locked(folder):
        _roll_back(folder)
        try:
            (staging / "new").mkdir(parents=True)
            yield staging / "new"
            _swap(folder, own, first)
            done = True
        finally:
            _roll_back(folder)
            if is_new and not done:
                folder.rmdir()


def restore(folder: Path) -> None:
    """Put back what was in a folder when `filling` it was killed."""
    if (folder / STAGING).is_dir():
        with _locked(folder):
            _roll_back(folder)


def _swap(folder: Path, own: re.Pattern[str], first: str) -> None:
    staging = folder / STAGING
    new = sorted(os.listdir(staging / "new"), key=lambda name: name == first)
    old = [name for name in os.listdir(folder) if name in new or own.fullmatch(name)]
    (staging / "names").write_text(json.dumps(new), encoding="utf-8")
    (staging / "going").mkdir()
    for name in sorted(old, key=lambda name: name != first):
        os.replace(folder / name, staging / "going" / name)
    (staging / "going").rename(staging / "gone")  # from here on what is in the folder is new
    for name in new:
        os.replace(staging / "new" / name, folder / name)
    (staging / "gone").rename(staging / "replaced")  # done: there is no way back


def _roll_back(folder: Path) -> None:
    """Undo a swap that did not come to its end, and remove its traces."""
    staging = folder / STAGING
    if (staging / "gone").exists():
        for name in read_json(staging / "names"):
            if not (staging / "new" / name).exists():
                remove(folder / name)
        (staging / "gone").rename(staging / "going")
    if (staging / "going").exists():
        for name in os.listdir(staging / "going"):
            os.replace(staging / "going" / name, folder / name)
    # What cannot be removed now is in nobody's way, and is removed the next time.
    shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BlockingIOError(
            f"another process is saving into {folder}; valid is one at a time"
        ) from error
    try:
        yield
    finally:
        os.close(handle)


def read_json(path: Path):
    """Read a small result."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(value, path: Path) -> None:
    """Write a small result; all of it, or nothing."""
    with replacing(path) as partial:
        text = json.dumps(value, indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
