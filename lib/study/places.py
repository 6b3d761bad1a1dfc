"""Where notebooks read and write: the pipeline publishes, a notebook run by hand does not.

The pipeline sets FFMERGE_PUBLISH=1. Without it everything is written below `scratch/`, and read
from there before it is read from what is published.
"""

import os
from pathlib import Path

from study.config import find_root

PUBLISH = "FFMERGE_PUBLISH"
SCRATCH = "scratch"


def is_publishing() -> bool:
    """Whether the pipeline runs this notebook, and its results are published."""
    return os.environ.get(PUBLISH) == "1"


def make_output(path: str) -> Path:
    """Where to write a result; its folder is made if it is not there.

    Args:
        path: below the root, such as "results/models/vit-glyphs/cka.csv".
    """
    full = find_root() / path if is_publishing() else find_root() / SCRATCH / path
    full.parent.mkdir(parents=True, exist_ok=True)
    return full


def make_scratch() -> Path:
    """The folder for files that nobody keeps, on the disk of the real ones; git does not see it."""
    folder = find_root() / SCRATCH
    folder.mkdir(exist_ok=True)
    return folder


def has_input(path: str) -> bool:
    """Whether `find_input` would find something."""
    return any(place.exists() for place in _places(path))


def find_input(path: str, made_by: str) -> Path:
    """Where to read what another notebook wrote: by hand in `scratch/` first.

    Args:
        path: below the root, as in `make_output`.
        made_by: the notebook that writes it.

    Raises:
        FileNotFoundError: nobody has; one sentence says what to run.
    """
    for place in _places(path):
        if place.exists():
            if SCRATCH in place.relative_to(find_root()).parts[:1]:
                print(f"reading {SCRATCH}/{path}, which a notebook run by hand has written")
            return place
    raise FileNotFoundError(
        f"{path} is missing; run notebook {made_by} first, or `make repro` if it lies in the store"
    )


def _places(path: str) -> list[Path]:
    published = find_root() / path
    return [published] if is_publishing() else [find_root() / SCRATCH / path, published]
