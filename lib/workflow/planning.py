"""What `make repro` will do, and why, before it does it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # DVC takes a second to import
    from workflow.graph import Pipeline

SHOWN = 20  # reasons that are worth a line each


@dataclass(frozen=True)
class Schedule:
    """The stages to run, in order.

    Attributes:
        reasons: stages that have to run, and why.
        again: stages that run only to make an input that is missing, and which.
        followers: stages that run where the results of those change.
    """

    reasons: dict[str, list[str]]
    again: dict[str, str] = field(default_factory=dict)
    followers: list[str] = field(default_factory=list)

    @property
    def stages(self) -> list[str]:
        """All that may run."""
        return [*self.again, *self.reasons, *self.followers]

    def describe(self) -> str:
        """Why which stages run, a line for each reason."""
        lines = explain(self.reasons)
        lines += [f"  {name}, to make {path} again" for name, path in self.again.items()]
        if self.followers:
            kinds = [name.partition("@")[0] for name in self.followers]
            counts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
            lines.append(f"  and where their results change: {', '.join(counts)}")
        return "\n".join(lines)


def explain(reasons: dict[str, list[str]]) -> list[str]:
    """A line for each reason, with the stages that run for it."""
    stages: dict[str, list[str]] = {}
    for name, found in reasons.items():
        stages.setdefault(join(found), []).append(name)
    lines = [f"  {reason}: {join(names)}" for reason, names in stages.items()]
    more = [f"  and {len(lines) - SHOWN} more reasons"] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more


def make_schedule(pipeline: Pipeline, kept: Iterable[str] = ()) -> Schedule:
    """Find the stages that have to run, what they need, and what follows.

    Args:
        pipeline: as it lies there.
        kept: stages that are left as they are, whatever has changed.
    """
    reasons = {
        name: pipeline.find_reasons(name)
        or [f"{path} is gone" for path in pipeline.find_lost(name)]
        for name in pipeline.order
        if not pipeline.always_runs(name) and name not in kept
    }
    reasons = {name: found for name, found in reasons.items() if found}
    after: set[str] = set(reasons)
    for name in pipeline.order:
        if after.intersection(pipeline.needs[name]) and name not in kept:
            after.add(name)
    followers = [name for name in pipeline.order if name in after and name not in reasons]
    return Schedule(reasons, _find_again(pipeline, after), followers)


def is_base(name: str) -> bool:
    """Whether a stage trains a base model, for up to an hour."""
    return name.partition("@")[0] == "base"


def join(parts: Iterable[str], most: int = 3) -> str:
    """Parts in one line, the first few of many."""
    parts = list(parts)
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more


def _find_again(pipeline: Pipeline, planned: set[str]) -> dict[str, str]:
    """The stages to run for what planned ones read and neither folder nor store holds."""
    again, waiting = {}, list(planned)
    while waiting:
        for out in pipeline.find_missing(waiting.pop()):
            owner = out.stage.addressing
            if owner not in planned and owner not in again and not pipeline.is_stored(out):
                again[owner] = out.def_path
                waiting.append(owner)
    return {name: again[name] for name in pipeline.order if name in again}
