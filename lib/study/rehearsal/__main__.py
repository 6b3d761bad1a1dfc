"""Rehearse one model: `python -m study.rehearsal gpt2-large`, as `make rehearsal` does.

Every part runs in a process of its own, so that its peak of memory is its own; what would not fit
is not started. Writes results/benchmarks/rehearsal-MODEL.csv, where rows of other machines stay.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date

import pandas as pd

from study.apart import call_apart
from study.config import find_root, load_params
from study.machine import describe_machine
from study.peaks import find_room
from study.rehearsal.measures import measure
from study.rehearsal.parts import Part, Rehearsal, list_parts
from study.upkeep import update_table

SPARE = 0.85  # of the room that is used at the most: others may grow meanwhile
COLUMNS = [
    "stage",
    "part",
    "unit",
    "times",
    "seconds_each",
    "hours",
    "tokens_per_second",
    "peak_gb",
    "disk_gb",
    "sample",
    "skipped",
    "hardware",
    "date",
]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name in `models` of params.yaml")
    parser.add_argument("--minutes", type=float, default=15, help="what is left then is skipped")
    args = parser.parse_args()
    root, params = find_root(), load_params()
    deadline = time.monotonic() + 60 * args.minutes
    try:
        rehearsal = Rehearsal(params, root, args.model)
        parts = list_parts(rehearsal)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = rehearse(parts, lambda part: run_apart(rehearsal, part, deadline))
    path = root / "results/benchmarks" / f"rehearsal-{args.model}.csv"
    update_table(path, table, ["hardware"])
    print(describe(table))
    print(f"written to {path.relative_to(root)}")
    return 0


def rehearse(parts: list[Part], run: Callable[[Part], dict]) -> pd.DataFrame:
    """Measure every part that fits.

    Args:
        parts: of a model's run.
        run: measures one (`measure`), or gives {"skipped": why}.

    Returns:
        One row for each part, `COLUMNS`; hours are those of the real run on this hardware.
    """
    rows, hardware = [], describe_machine()
    known: dict[str, dict] = {}  # two stages may do the same
    for part in parts:
        row = {"stage": part.stage, "part": part.what, "unit": part.unit, "times": part.times}
        room = find_room()
        if part.refused:
            found = {"skipped": f"the real run stops here: {part.refused}"}
        elif part.needs > SPARE * room:
            why = f"needs about {part.needs / 1e9:.1f} GB, {room / 1e9:.1f} GB are free"
            found = {"skipped": f"{why}, of which {SPARE:.0%} may be used"}
        else:
            found = known[part.key] = known.get(part.key) or run(part)
        if "seconds" in found:
            each = found["seconds"]
            row |= {"seconds_each": each, "hours": part.times * each / 3600}
            row["tokens_per_second"] = 1 / each if part.unit == "token" else None
            row["peak_gb"] = found["peak"] / 1e9
            row["disk_gb"] = part.times * found.get("disk", 0) / 1e9 or None
        row |= {key: found.get(key) for key in ("sample", "skipped")}
        rows.append(row | {"hardware": hardware, "date": date.today().isoformat()})
        print(f"{part.stage}: {part.what}: {found.get('skipped') or found['sample']}", flush=True)
    return pd.DataFrame(rows, columns=COLUMNS)


def run_apart(r: Rehearsal, part: Part, deadline: float) -> dict:
    """Measure a part in a process of its own; or say why it gave nothing."""
    left, own = deadline - time.monotonic(), replace(r)  # without what it has computed
    if left <= 0:
        return {"skipped": "no time was left"}
    try:
        return call_apart(measure, own, part.key, seconds=left, preload=measure.__module__)
    except (TimeoutError, ChildProcessError) as error:
        return {"skipped": str(error)}


def describe(table: pd.DataFrame) -> str:
    """The table in a terminal, and what the real run would take as far as it was measured."""
    shown = table.drop(columns=["hardware", "date", "skipped", "sample"]).dropna(
        subset="seconds_each"
    )
    lines = [shown.to_markdown(index=False, floatfmt=".3g"), ""]
    for row in table[table.skipped.notna()].itertuples():
        lines.append(f"skipped: {row.stage}: {row.part}: {row.skipped}")
    by_stage = ", ".join(f"{k} {v:.2g}" for k, v in table.groupby("stage").hours.sum().items())
    disk, hardware = table.disk_gb.sum(), table.hardware.iloc[0]
    lines.append(f"{table.hours.sum():.3g} hours on {hardware} ({by_stage}), {disk:.3g} GB of disk")
    return "\n".join(lines + ["without what was skipped"] * bool(table.skipped.notna().any()))


if __name__ == "__main__":
    sys.exit(main())
