"""Small results that stages pass on to each other, as JSON."""

import json
from pathlib import Path


def read_json(path: Path):
    """Read a small result."""
    return json.loads(path.read_text())


def write_json(value, path: Path) -> None:
    """Write a small result; all of it, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    partial.replace(path)
