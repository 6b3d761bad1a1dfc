"""Which methods there are, and what each says of itself: read from its file, without running it."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypedDict

Family = Literal["shares", "removes", "both", "stores fewer bits"]
Unit = Literal[
    "FF sublayers", "layers", "% of weights", "attention sublayers", "FF and attention sublayers"
]

_FOLDER = Path(__file__).parent / "methods"
_CONSTANTS = ("LOOK", "REFERENCE", "FAMILY", "REMOVES", "NEEDS")


class Look(TypedDict):
    """How a method is shown in every figure and table: matplotlib's words, a colour of Okabe's."""

    label: str
    color: str
    marker: str


@dataclass(frozen=True)
class About:
    """What the file of a method says of it.

    Attributes:
        name: of the file.
        what: the first line of its docstring.
        look, reference, family, removes, needs: its constants (`ffmerge.methods.Method`).
    """

    name: str
    what: str
    look: Look
    reference: str
    family: Family
    removes: Unit
    needs: tuple[str, ...]


def list_methods() -> list[str]:
    """The names of all methods."""
    return sorted(path.stem for path in _FOLDER.glob("[a-z]*.py"))


def check_method(name: str) -> None:
    """Check that there is a method of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in list_methods():
        raise ValueError(f"method {name!r} is unknown; valid are {', '.join(list_methods())}")


@cache
def describe_method(name: str) -> About:
    """What the file of a method says of it: quick, torch is not imported.

    Raises:
        ValueError: there is no such method.
    """
    check_method(name)
    tree = ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    constants = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in _CONSTANTS:
            constants[target.id.lower()] = ast.literal_eval(node.value)
    what = (ast.get_docstring(tree) or "").partition("\n")[0]
    return About(name, what, **constants)
