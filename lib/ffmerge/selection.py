"""Windows: which adjacent FF sublayers to merge, and how candidates are scored (Section 3.4).

A window is a pair (first, last) of layer indices, both ends in, written `3-7`. Merging a window
of k sublayers removes k - 1 of them.
"""

from collections.abc import Callable, Iterable
from typing import Literal, get_args

import numpy as np
from tqdm import tqdm

from ffmerge.config import Model

Window = tuple[int, int]
Anchor = Literal["first", "middle", "last"]


def check_window(window: Window, n_layers: int, least: int = 2) -> Window:
    """Return the window if it lies in a stack of `n_layers` and holds `least` sublayers or more.

    Raises:
        ValueError: naming the window and what would be valid.
    """
    first, last = window
    if not 0 <= first <= last < n_layers or last - first + 1 < least:
        raise ValueError(
            f"window {format_window(window)} is not valid in a stack of {n_layers} layers; valid "
            f"are first-last with 0 <= first, last <= {n_layers - 1} and {least} or more layers"
        )
    return window


def format_window(window: Window) -> str:
    """`(3, 7)` as the paper writes it: `3-7`."""
    return f"{window[0]}-{window[1]}"


def parse_window(text: str) -> Window:
    """`3-7` as `(3, 7)`."""
    first, _, last = text.partition("-")
    return int(first), int(last)


def list_windows(n_layers: int, k: int) -> list[Window]:
    """Every window of k adjacent layers: starting indices 0 to n_layers - k (Section 3.4).

    Raises:
        ValueError: k is below 1 or above `n_layers`.
    """
    if not 1 <= k <= n_layers:
        raise ValueError(f"k = {k} layers do not fit a stack of {n_layers}; valid are 1-{n_layers}")
    return [(first, first + k - 1) for first in range(n_layers - k + 1)]


def list_candidates(entry: Model, method: str, ratio: str) -> list[Window]:
    """The windows that a method may choose from, to remove what the ratio says (Section 3.4).

    Merging k sublayers removes k - 1; dropping removes whole layers.
    """
    n_layers, n_stacks = min(entry.layers.values()), len(entry.layers)
    if method == "drop":
        return list_windows(n_layers, entry.dropped[ratio] // n_stacks)
    return list_windows(n_layers, entry.removed[ratio] // n_stacks + 1)


def find_anchor(window: Window, anchor: Anchor = "first") -> int:
    """Layer index of a window's anchor (Section 5.3); an even window's middle is the earlier one.

    Raises:
        ValueError: `anchor` is not first, middle or last.
    """
    if anchor not in get_args(Anchor):
        raise ValueError(f"anchor {anchor!r} is unknown; valid are {', '.join(get_args(Anchor))}")
    first, last = window
    return {"first": first, "middle": (first + last) // 2, "last": last}[anchor]


def list_pairs(windows: Iterable[Window], anchors: Iterable[Anchor] = ("first",)) -> list[Window]:
    """The pairs of layers that merging these windows has to align, each once, ascending.

    A pair and its reverse are one assignment problem: the one's solution is the other's inverse.
    """
    windows, anchors = list(windows), list(anchors)
    pairs = set()
    for window in windows:
        for a in (find_anchor(window, anchor) for anchor in anchors):
            pairs |= {(min(a, i), max(a, i)) for i in range(window[0], window[1] + 1) if i != a}
    return sorted(pairs)


def score_windows(
    windows: list[Window], compress: Callable, evaluate: Callable, label: str = "windows"
) -> dict[Window, float]:
    """Score the compressed model of every window before any tuning (Section 3.4, Appendix B).

    Args:
        windows: the candidates.
        compress: window to compressed model.
        evaluate: model to score on validation data.
        label: what the progress bar says.

    Returns:
        {window: score}, in the order given.
    """
    bar = tqdm(windows, desc=label, unit="window")
    return {window: evaluate(compress(window)) for window in bar}


def choose_window(scores: dict[Window, float], higher_is_better: bool) -> Window:
    """The window with the best score; of equals, the earliest."""
    best = max if higher_is_better else min
    return best(sorted(scores), key=scores.__getitem__)


def sample_windows(windows: list[Window], count: int, seed: int, best: Window) -> list[Window]:
    """Draw windows at random, without the best one and without repetition (Section 5.2).

    Raises:
        ValueError: more windows asked for than there are.
    """
    others = [window for window in windows if window != best]
    if count > len(others):
        raise ValueError(f"{count} random windows were asked for; valid are 0-{len(others)}")
    order = np.random.default_rng(seed).permutation(len(others))
    return [others[i] for i in order[:count]]
