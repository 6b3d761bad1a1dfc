"""Methods: how a model is compressed. One file each, found by name.

Adding a method is adding a file with what `Method` below lists; its first line says what it does.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, TypeVar

from torch import nn

from ffmerge.activations import Batch
from ffmerge.catalogue import Family, Look, Unit, check_method
from ffmerge.pairs import Pairs
from ffmerge.patches import Patch, Plan

Value = TypeVar("Value")


@dataclass(frozen=True)
class Evidence:
    """What was learnt about a base model from data, for methods that need it.

    Attributes:
        permutations: one for each pair of sublayers (`ffmerge.alignment`).
        calibration: gives batches of the base's own training data, the same ones at every call;
            how many tokens of them a method runs is its own choice.
    """

    permutations: Pairs | None = None
    calibration: Callable[[], Iterable[Batch]] | None = None
    _kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: str, compute: Callable[[], Value]) -> Value:
        """What is computed from this evidence once, however many candidates want it.

        Args:
            name: of it.
            compute: called the first time.
        """
        if name not in self._kept:
            self._kept[name] = compute()
        return self._kept[name]


class Method(Protocol):
    """What the file of every method holds; the constants are literals."""

    LOOK: Look
    REFERENCE: str  # where the method comes from
    FAMILY: Family
    REMOVES: Unit  # what its budget counts
    NEEDS: tuple[str, ...]  # fields of Evidence

    @staticmethod
    def list_plans(model: nn.Module, count: int, evidence: Evidence) -> list[Plan]:
        """The candidates that remove `count` of what the method removes, from all stacks alike.

        Args:
            model: the base; left as it is.
            count: how many go; a multiple of the number of stacks.
            evidence: what the method needs.
        """

    @staticmethod
    def make(model: nn.Module, plan: Plan, evidence: Evidence) -> Patch:
        """The patch that compresses a model (left as it is) by a plan, or by a finer one."""


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: there is none.
    """
    check_method(name)
    return import_module(f"{__name__}.{name}")
