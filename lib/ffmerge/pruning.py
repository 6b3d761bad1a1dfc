"""The baseline that removes instead of merging: layer drop (paper, Section 4.4)."""

import copy
from collections.abc import Mapping

from torch import nn

from ffmerge.selection import Window, check_window
from ffmerge.sublayers import find_stacks, set_layers


def drop_layers(model: nn.Module, windows: Mapping[str, Window]) -> nn.Module:
    """Drop a window of whole layers, attention and all, from each named stack (Section 4.4).

    Args:
        model: left as it is.
        windows: {"decoder": (22, 27)}, both ends in; a single layer is a window too.

    Returns:
        A new, shallower model; its configuration says how deep it is.

    Raises:
        ValueError: unknown stack, a window outside it, or one that leaves no layer.
    """
    model = copy.deepcopy(model)
    stacks = find_stacks(model)
    for name, window in windows.items():
        if name not in stacks:
            raise ValueError(f"stack {name!r} is unknown; valid are {', '.join(stacks)}")
        first, last = check_window(window, len(stacks[name]), least=1)
        keep = [i for i in range(len(stacks[name])) if not first <= i <= last]
        if not keep:
            raise ValueError(
                f"window {first}-{last} drops every layer of the {name}; valid are windows of at "
                f"most {len(stacks[name]) - 1} layers"
            )
        set_layers(model, stacks[name], keep)
    return model
