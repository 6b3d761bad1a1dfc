"""How long stages took, on which hardware: results/durations.json, for a word before a run."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ffmerge.files import read_json, write_json

FILE = Path("results/durations.json")  # hardware to kind of stage to model to seconds
HARDWARE = "FFMERGE_HARDWARE"  # what `make repro` tells its stages, which then need not ask torch
NOTABLE = 1.5  # an entry is renewed where it is off by such a factor, so that git sees few changes

Durations = dict[str, dict[str, dict[str, float]]]


@contextmanager
def timing(root: Path, stage: str | None, model: str) -> Iterator[None]:
    """Note how long a stage of the pipeline takes, if it ends well; nothing outside of it.

    Args:
        root: the folder of params.yaml.
        stage: its name, such as "evals@vit-glyphs-base"; None for a notebook run by hand.
        model: the model that it runs on; "" for none.
    """
    start = time.monotonic()
    yield
    if stage is not None:
        record(root, stage.partition("@")[0], model, time.monotonic() - start)


def record(root: Path, kind: str, model: str, seconds: float) -> None:
    """Note the seconds of a stage, where what is noted differs much or there is nothing."""
    durations = read(root)
    noted = durations.setdefault(describe(), {}).setdefault(kind, {})
    old = noted.get(model)
    if old is None or not old / NOTABLE <= seconds <= old * NOTABLE:
        noted[model] = round(seconds, 1)
        write_json(durations, root / FILE)


def read(root: Path) -> Durations:
    """What was noted."""
    return read_json(root / FILE) if (root / FILE).exists() else {}


def describe() -> str:
    """This machine's hardware; asked for once, as it needs torch."""
    if HARDWARE not in os.environ:
        from study.hardware import describe_hardware

        os.environ[HARDWARE] = describe_hardware()
    return os.environ[HARDWARE]


def estimate(root: Path, stages: list[tuple[str, str]]) -> str:
    """How long stages will take, in words.

    Args:
        root: the folder of params.yaml.
        stages: kind and model of each.
    """
    durations, here = read(root), describe()
    places = [here, *(hardware for hardware in durations if hardware != here)]
    seconds, elsewhere, unknown = 0.0, {}, 0
    for kind, model in stages:
        noted = {place: durations.get(place, {}).get(kind, {}).get(model) for place in places}
        place = next((place for place, value in noted.items() if value is not None), None)
        if place is None:
            unknown += 1
            continue
        seconds += noted[place]
        if place != here:
            elsewhere[place] = True
    words = f"about {format_seconds(seconds)}" if seconds else "for an unknown time"
    if seconds and unknown:
        words += f", and {unknown} more that nobody has timed"
    return words + (f" (as measured on: {', '.join(elsewhere)})" if elsewhere else "")


def format_seconds(seconds: float) -> str:
    """Seconds, minutes or hours, as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{round(minutes / 60)} hours"
