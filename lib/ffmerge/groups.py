"""Groups: which FF sublayers share one; windows are groups of neighbours (paper, Section 3.4)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Anchor = Literal["first", "middle", "last"]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Group:
    """The FF sublayers of one stack that share one FF, aligned to one of them.

    Attributes:
        layers: their layer indices, ascending, two or more; merging k of them removes k - 1.
        anchor: the layer whose order of neurons the others take (Section 5.3).
    """

    layers: tuple[int, ...]
    anchor: int

    def __post_init__(self) -> None:
        if len(self.layers) < 2 or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(
                f"group {self.layers} is not valid; valid are two or more layers, ascending"
            )
        if self.layers[0] < 0 or self.anchor not in self.layers:
            raise ValueError(
                f"group {self.layers} with anchor {self.anchor} is not valid; valid are layers "
                "from 0 on, and one of them as anchor"
            )

    def __str__(self) -> str:
        return format_layers(self.layers)

    @property
    def others(self) -> tuple[int, ...]:
        """All layers but the anchor."""
        return tuple(i for i in self.layers if i != self.anchor)

    def anchored(self, anchor: Anchor) -> "Group":
        """The same sublayers with their first, middle or last one as anchor."""
        return Group(self.layers, find_anchor(self.layers, anchor))


def window(first: int, last: int, anchor: Anchor = "first") -> Group:
    """The group of adjacent sublayers that the paper writes `first-last`, both ends in.

    Raises:
        ValueError: no layer indices, or the last one is not above the first.
    """
    if not (isinstance(first, int) and isinstance(last, int)) or not 0 <= first < last:
        raise ValueError(
            f"window {first}-{last} is not valid; valid are two layer indices, the first one lower"
        )
    return Group(tuple(range(first, last + 1)), find_anchor(range(first, last + 1), anchor))


def find_anchor(layers: Iterable[int], anchor: Anchor = "first") -> int:
    """Layer index of a group's anchor (Section 5.3); of an even number the earlier middle.

    Args:
        layers: of the group, ascending.
        anchor: "first", "middle" or "last".

    Raises:
        ValueError: `anchor` is not first, middle or last.
    """
    if anchor not in get_args(Anchor):
        raise ValueError(f"anchor {anchor!r} is unknown; valid are {', '.join(get_args(Anchor))}")
    layers = list(layers) or [-1]  # an empty group is refused by name elsewhere
    return layers[{"first": 0, "middle": (len(layers) - 1) // 2, "last": -1}[anchor]]


def format_layers(layers: Iterable[int]) -> str:
    """`(3, 4, 5)` as the paper writes it, `3-5`; layers that are not neighbours as `3,5`."""
    layers = list(layers)
    if len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def parse_layers(text: str) -> tuple[int, ...]:
    """`3-5` as `(3, 4, 5)`, `3,5` as `(3, 5)`.

    Raises:
        ValueError: neither of the two.
    """
    first, dash, last = text.partition("-")
    try:
        return tuple(range(int(first), int(last) + 1) if dash else map(int, text.split(",")))
    except ValueError:
        raise ValueError(f"layers {text!r} are not valid; valid are `3-7` and `3,5,7`") from None


def list_windows(n_layers: int, k: int) -> list[tuple[int, ...]]:
    """Every window of k adjacent layers: starting indices 0 to n_layers - k (Section 3.4).

    Args:
        n_layers: depth of the stack.
        k: layers in a window.

    Raises:
        ValueError: k is below 1 or above `n_layers`.
    """
    if not 1 <= k <= n_layers:
        raise ValueError(f"k = {k} layers do not fit a stack of {n_layers}; valid are 1-{n_layers}")
    return [tuple(range(first, first + k)) for first in range(n_layers - k + 1)]


def list_pairs(groups: Iterable[Group]) -> list[Pair]:
    """The pairs of layers that merging these groups has to align, each once, ascending.

    A pair and its reverse are one assignment problem: the one's solution is the other's inverse.
    """
    return sorted({(min(g.anchor, i), max(g.anchor, i)) for g in groups for i in g.others})


def check_groups(groups: Iterable[Group], n_layers: int, stack: str) -> None:
    """Check that groups lie in a stack and that no sublayer is in two of them.

    Args:
        groups: all of one stack.
        n_layers: its depth.
        stack: its name, for the message.

    Raises:
        ValueError: naming the group and what would be valid.
    """
    seen: dict[int, Group] = {}
    for group in groups:
        if group.layers[-1] >= n_layers:
            raise ValueError(
                f"group {group} is not valid in the {stack} of {n_layers} layers; valid are "
                f"layers 0 to {n_layers - 1}"
            )
        for i in group.layers:
            if i in seen:
                raise ValueError(
                    f"groups {seen[i]} and {group} of the {stack} both hold layer {i}; valid are "
                    "groups without a common layer"
                )
            seen[i] = group
