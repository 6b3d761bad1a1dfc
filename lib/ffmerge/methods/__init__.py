"""Methods: how a model is compressed. One file each, found by name.

Adding a method is adding a file with what `Method` below lists; its first line says what it does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from torch import nn

from ffmerge.alignment import Pairs
from ffmerge.catalogue import Family, Look, Unit, check_method
from ffmerge.patches import Patch, Plan


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
    REMOVES: Unit  # what its budget counts
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


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: there is none.
    """
    check_method(name)
    return import_module(f"{__name__}.{name}")
