"""Methods: how a model is compressed. One file each, found by name.

Adding a method is adding a file with what `Method` below lists; its first line says what it does.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict

if TYPE_CHECKING:  # the list of methods is read without torch
    from torch import nn

    from ffmerge.alignment import Pairs
    from ffmerge.patches import Patch, Plan

Family = Literal["shares", "removes", "both", "stores fewer bits"]
Kind = Literal["FF sublayers", "layers"]


class Look(TypedDict):
    """How a method is shown in every figure and table: matplotlib's words, a colour of Okabe's."""

    label: str
    color: str
    marker: str


@dataclass(frozen=True)
class Evidence:
    """What was learnt about a base model from data, for methods that need it.

    Attributes:
        permutations: one for each pair of sublayers (`ffmerge.alignment`).
    """

    permutations: Pairs | None = None


class Method(Protocol):
    """What the file of every method holds; the constants are literals."""

    LOOK: Look
    REFERENCE: str  # where the method comes from
    FAMILY: Family
    REMOVES: Kind  # what its budget counts
    NEEDS: tuple[str, ...]  # fields of Evidence

    @staticmethod
    def list_plans(depths: Mapping[str, int], count: int) -> list[Plan]:
        """The candidates that remove `count` of what the method removes, from all stacks alike.

        Args:
            depths: stack to its number of layers, all of one depth.
            count: how many go; a multiple of the number of stacks.
        """

    @staticmethod
    def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
        """The patch that compresses a model (left as it is) by a plan."""


@dataclass(frozen=True)
class About:
    """What the file of a method says of it, read without running it."""

    name: str
    what: str
    look: Look
    reference: str
    family: Family
    removes: Kind
    needs: tuple[str, ...]


def list_methods() -> list[str]:
    """The names of all methods."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: there is none.
    """
    _check(name)
    return import_module(f"{__name__}.{name}")


@cache
def describe_method(name: str) -> About:
    """What the file of a method says of it: quick, torch is not imported.

    Raises:
        ValueError: there is no such method.
    """
    _check(name)
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    constants = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id in ("LOOK", *_CONSTANTS):
            constants[target.id.lower()] = ast.literal_eval(node.value)
    what = (ast.get_docstring(tree) or "").partition("\n")[0]
    return About(name, what, **constants)


_CONSTANTS = ("REFERENCE", "FAMILY", "REMOVES", "NEEDS")


def _check(name: str) -> None:
    if name not in list_methods():
        raise ValueError(f"method {name!r} is unknown; valid are {', '.join(list_methods())}")
