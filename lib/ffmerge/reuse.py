"""Score candidates without running again what none of them changes: the layers below a window.

All candidates share their lowest layers with the base (Section 3.4). What these put out is kept
while the base is scored; a candidate then starts at the first layer in which it differs.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ffmerge.memory import count_bytes
from ffmerge.sublayers import Stack, find_stacks

BUDGET = 2 * 10**9  # bytes of hidden states
Evaluate = Callable[[nn.Module], float]


class Reuse:
    """What the layers of a base's first stack put out while it was scored, call by call.

    Only the stack that runs first is shortened: what a decoder reads of an encoder changes. Where
    a budget does not hold the outputs of all layers, it holds those of every second, fourth, …

    Invariant: the score of a shortened run is that of the whole run, bit by bit.
    """

    def __init__(self, base: nn.Module, evaluate: Evaluate, budget: int = BUDGET) -> None:
        """Score the base, which is `score` then, and keep what its layers put out.

        Args:
            base: of all candidates.
            evaluate: model to score on validation data, the same batches in the same order. A base
                that writes token by token, or whose layers hand on more than hidden states, is told
                by a warning, and every candidate runs whole.
            budget: bytes for what is kept.
        """
        self.base, self.evaluate = base, evaluate
        self._inputs: list[Tensor] = []  # of the first layer, one for each call
        self._kept: dict[int, list[Any]] = {i: [] for i in range(len(_first_stack(base)))}
        self.score, reason = self._record(budget), None
        if any(len(x) != len(self._inputs) for x in self._kept.values()):
            reason = "writes token by token"
        elif self._kept and self._run_from(base, max(self._kept)) != self.score:
            reason = "has layers that hand on more than hidden states"
        if reason:
            warnings.warn(f"{type(base).__name__} {reason}; candidates run whole", stacklevel=2)
            self._kept.clear()

    def __call__(self, candidate: nn.Module) -> float:
        """The score of a candidate: `evaluate(candidate)`, from its first changed layer on."""
        change = self._find_change(candidate)
        usable = [i for i in self._kept if i < change]
        return self._run_from(candidate, max(usable)) if usable else self.evaluate(candidate)

    def _record(self, budget: int) -> float:
        layers, size = _first_stack(self.base).layers, 0

        def start(module: nn.Module, args: tuple, kwargs: dict) -> None:
            cache = kwargs.get("past_key_values")
            if cache is not None and cache.get_seq_length():
                return  # a next token: one call less than there are outputs
            self._inputs.append(_find_hidden(args, kwargs).clone())

        def keep(i: int, module: nn.Module, args: tuple, output: Any) -> None:
            nonlocal size
            if i in self._kept:
                self._kept[i].append(_copy(output))
                size += _count_bytes(output)
            while size > budget and self._kept:
                gone = list(self._kept)[::2]  # of 0, 1, 2 and 3 these are 0 and 2
                size -= sum(_count_bytes(x) for i in gone for x in self._kept.pop(i))

        handles = [layer.register_forward_hook(partial(keep, i)) for i, layer in enumerate(layers)]
        handles.append(layers[0].register_forward_pre_hook(start, with_kwargs=True))
        try:
            return self.evaluate(self.base)
        finally:
            for handle in handles:
                handle.remove()

    def _find_change(self, candidate: nn.Module) -> int:
        """The first layer that is not the base's."""
        own, other = (_first_stack(model).layers for model in (self.base, candidate))
        pairs = zip(own, other, strict=False)
        changed = (i for i, (a, b) in enumerate(pairs) if not _are_equal(a, b))
        return next(changed, min(len(own), len(other)))

    def _run_from(self, candidate: nn.Module, last: int) -> float:
        """Score a candidate whose layers up to `last` are the base's."""
        layers = list(_first_stack(candidate).layers)[: last + 1]
        with _replaced(layers, self._inputs, self._kept[last]):
            return self.evaluate(candidate)


@contextmanager
def _replaced(
    layers: Sequence[nn.Module], inputs: Sequence[Tensor], outputs: Sequence[Any]
) -> Iterator[None]:
    """Layers that compute nothing: the last one gives what was kept, the others what they get."""
    call = -1

    def stand_in(i: int, *args, **kwargs) -> Any:
        nonlocal call
        hidden = _find_hidden(args, kwargs)
        if i == 0:
            call += 1
            if call == len(inputs) or not _match(hidden, inputs[call]):
                raise RuntimeError(
                    "evaluate gave a candidate's first layer another input than the base's; valid "
                    "are the same batches in the same order"
                )
        if i == len(layers) - 1:
            return _copy(outputs[call])
        kept = outputs[call]
        return (hidden, *kept[1:]) if isinstance(kept, tuple) else hidden

    for i, layer in enumerate(layers):
        layer.forward = partial(stand_in, i)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _first_stack(model: nn.Module) -> Stack:
    return next(iter(find_stacks(model).values()))


def _find_hidden(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _are_equal(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(_match(x, b[name]) for name, x in a.items())


def _match(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.equal(x, y)


def _copy(output: Any) -> Any:
    """The same again: layers above may write over it."""
    if isinstance(output, tuple):
        return tuple(map(_copy, output))
    return output.clone() if isinstance(output, Tensor) else output


def _count_bytes(output: Any) -> int:
    tensors = output if isinstance(output, tuple) else (output,)
    return count_bytes(x for x in tensors if isinstance(x, Tensor))
