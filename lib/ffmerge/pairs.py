"""The permutations of pairs of sublayers: kept in a file, aligned when asked for, picked."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ffmerge.alignment import align, invert
from ffmerge.groups import Group

Pairs = dict[str, Tensor]  # "decoder.3.7": the permutation that aligns sublayer 7 to sublayer 3


class LazyPairs(dict[str, Tensor]):
    """The permutations of all pairs of a stack's sublayers, each aligned when it is asked for.

    Most methods ask for a few of them: those within the windows that they try.
    """

    def __init__(self, features: Mapping[str, Sequence[Tensor]]) -> None:
        """Args: features[stack][i] (n_tokens, d_ff) of every sublayer."""
        super().__init__()
        self._features = features
        self._places = {
            pair_name(name, a, b): (name, a, b)
            for name, layers in features.items()
            for b in range(len(layers))
            for a in range(b)
        }

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __missing__(self, name: str) -> Tensor:
        stack, a, b = self._places[name]
        self[name] = align(self._features[stack][a], self._features[stack][b])
        return self[name]


def pair_name(stack: str, anchor: int, other: int) -> str:
    """How the permutation of a pair of sublayers is called in the file of all pairs."""
    return f"{stack}.{anchor}.{other}"


def save_pairs(pairs: Pairs, path: Path) -> None:
    """Write the permutations of all pairs, 32 bits a neuron."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: p.int() for name, p in sorted(pairs.items())}, path)


def load_pairs(path: Path) -> Pairs:
    """Read the permutations of all pairs as int64 vectors."""
    return {name: p.long() for name, p in load_file(path).items()}


def select_permutations(
    pairs: Pairs, groups: Mapping[str, tuple[Group, ...]]
) -> dict[str, dict[int, Tensor]]:
    """The permutations that align groups to their anchors, from those of all pairs.

    A pair that is known the other way round is inverted: it is the same assignment problem.

    Args:
        pairs: one permutation for each pair, by its name.
        groups: stack to groups.

    Returns:
        permutations[stack][i]: (d_ff,); anchors have none.

    Raises:
        ValueError: a pair of a group has no permutation.
    """
    permutations: dict[str, dict[int, Tensor]] = {}
    for stack, a, i in (
        (name, g.anchor, i) for name in groups for g in groups[name] for i in g.others
    ):
        if pair_name(stack, a, i) in pairs:
            p = pairs[pair_name(stack, a, i)]
        elif pair_name(stack, i, a) in pairs:
            p = invert(pairs[pair_name(stack, i, a)])
        else:
            raise ValueError(
                f"sublayers {a} and {i} of the {stack} have no permutation; valid are pairs that "
                "were aligned before"
            )
        permutations.setdefault(stack, {})[i] = p
    return permutations
