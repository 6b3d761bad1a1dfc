"""`python -m ffmerge methods`: all methods, and what the contest made of them; without torch."""

from pathlib import Path

from ffmerge.catalogue import describe_method, list_methods
from ffmerge.files import read_json

CONTEST = Path(__file__).parent / "contest.json"  # written by `python -m study.report.packaged`
NEEDS = {"permutations": "features", "calibration": "calibration data"}


def list_all() -> None:
    """Print what each method does, what it needs, and what it kept of each model's quality."""
    results = read_json(CONTEST)
    print("Quality kept in the contest, % of the uncompressed model: before → after tuning\n")
    for name in list_methods():
        about = describe_method(name)
        needs = " and ".join(NEEDS[need] for need in about.needs) or "no data"
        print(f"{name}  ({about.family}; counts {about.removes}; needs {needs})\n  {about.what}")
        for ratio, kept in results.get(name, {}).items():
            print(f"  {ratio} removed: {', '.join(map(_print_kept, kept, kept.values()))}")
        print()


def _print_kept(model: str, kept: list[float | None]) -> str:
    before, after = ("–" if value is None else f"{value:.1f}" for value in kept)
    return f"{model} {before}" + ("" if after == "–" else f" → {after}")
