"""`dvc repro` for people: also on a fresh clone, where intermediate files were never pushed.

    python -m workflow.repro                        everything in params.yaml's `run`, up to date
                             … --retrain-bases      bases that are stale too
                             … --keep-bases         bases stay as they are, stale or not
    python -m workflow.repro --check                name the stale stages and why, run nothing
    python -m workflow.repro --fetch                only restore what the repository carries
    python -m workflow.repro --from-scratch [MODEL] recompute all models or one, caches ignored
                             … --keep-bases         all but the training of the base models

DVC skips a stage whose inputs are absent but unchanged. A stage that must run needs them, so what
it lacks is restored first: from the repository's store, or else by running the stage that makes it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ffmerge.files import replacing
from study.config import Params, find_root
from workflow import durations
from workflow.inputs import ask_hub, check_inputs, fetch, provide
from workflow.planning import Schedule, explain, is_base, join, make_schedule

if TYPE_CHECKING:  # a wrong name in params.yaml is answered before DVC is imported
    from workflow.graph import Pipeline

Bases = Literal["ask", "keep", "retrain"]


def reproduce(root: Path, bases: Bases = "ask") -> None:
    """Bring everything up to date with the fewest stages run.

    Args:
        root: the folder of params.yaml.
        bases: what to do with trained bases that are stale: stop and ask, keep or train anew.

    Raises:
        ValueError: params.yaml or a corpus is not valid, a base is stale, or the hub refuses.
        SystemExit: a stage failed, and has said why.
    """
    params = check_inputs(root)
    from workflow.graph import open_pipeline

    with open_pipeline(root) as pipeline:
        plan = make_schedule(pipeline)
        kept = check_bases(root, params, pipeline, plan, bases)
        if kept:
            plan = make_schedule(pipeline, kept)
        if plan.reasons:
            print(f"{len(plan.reasons) + len(plan.again)} stages will run:\n{plan.describe()}")
            most = "at most " if plan.followers else ""
            print(f"{most}{estimate(root, params, plan.stages)}\n", flush=True)
            ask_hub(params, plan.stages)
            run(pipeline, plan)
        fetch(pipeline)


def check_bases(
    root: Path, params: Params, pipeline: Pipeline, plan: Schedule, bases: Bases
) -> list[str]:
    """Make sure that no base which the repository carries is trained anew without being asked for.

    Returns:
        The stages of stale bases to keep.

    Raises:
        ValueError: bases would be trained; one sentence says which, why, and both ways on.
    """
    reasons = {name: join(why) for name, why in plan.reasons.items() if is_base(name)}
    lacking = {
        name: f"{path} is neither here nor in the store"
        for name, path in plan.again.items()
        if is_base(name)
    }
    found = reasons | lacking
    unlocked = [n for n in found if not pipeline.has_run(n) and pipeline.has_results(n)]
    known = {n: why for n, why in found.items() if pipeline.has_run(n) or n in unlocked}
    if not known or bases == "retrain":
        return []
    if bases == "keep" and not lacking:
        return list(known)
    names = "; ".join(f"{name}: {why}" for name, why in known.items())
    keep = ", or `make repro BASES=keep` to go on with those that the repository carries"
    if unlocked:
        keep = ", or `git checkout dvc.lock`, which lost them: their results are here"
    raise ValueError(
        f"base models would be trained anew ({names}), {estimate(root, params, list(known))}; run "
        f"`make repro BASES=retrain` to do so{'' if lacking else keep}"
    )


def run(pipeline: Pipeline, plan: Schedule) -> None:
    """Run the stages of a plan; of those that follow only the ones whose inputs have changed.

    Raises:
        SystemExit: a stage failed.
    """
    planned = {*plan.reasons, *plan.followers}
    for name in pipeline.order:
        if pipeline.always_runs(name):
            pipeline.run(name)
        elif name in planned:
            lost = pipeline.find_lost(name)
            if lost or pipeline.find_reasons(name):
                provide(pipeline, name)
                pipeline.run(name, force=bool(lost))


def estimate(root: Path, params: Params, names: list[str]) -> str:
    """How long stages will take, in words."""
    from workflow.stages import find_models

    models = find_models(params)
    kinds = [(name.partition("@")[0], models.get(name, "")) for name in names]
    return durations.estimate(root, kinds)


def check(root: Path) -> None:
    """Name the stages that are stale, and why; run nothing.

    Raises:
        SystemExit: some are.
    """
    check_inputs(root)
    from workflow.graph import open_pipeline

    with open_pipeline(root) as pipeline:
        reasons = make_schedule(pipeline).reasons
    if reasons:
        raise SystemExit("\n".join(["stale: " + ", ".join(reasons), *explain(reasons)]))
    print("no stage is stale")


def update_readme(root: Path) -> str:
    """Put the generated results between the README's markers; returns them."""
    readme = root / "README.md"
    table = (root / "figures" / "results.md").read_text(encoding="utf-8")
    start, end = "<!-- results -->", "<!-- /results -->"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if start in text:
        before, _, rest = text.partition(start)
        updated = f"{before}{start}\n{table}{end}{rest.partition(end)[2]}"
        if updated != text:
            with replacing(readme) as partial:
                partial.write_text(updated, encoding="utf-8", newline="\n")
    return table


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workflow.repro")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="name the stale stages, run nothing")
    what.add_argument("--fetch", action="store_true", help="only restore what is stored")
    what.add_argument(
        "--from-scratch", metavar="MODEL", nargs="*", help="recompute these models, or all"
    )
    bases = parser.add_mutually_exclusive_group()
    bases.add_argument("--keep-bases", action="store_true", help="never train a base model")
    bases.add_argument("--retrain-bases", action="store_true", help="train stale base models anew")
    options = parser.parse_args(arguments)
    choice = "keep" if options.keep_bases else "retrain" if options.retrain_bases else "ask"
    try:
        root = find_root()
        os.chdir(root)
        if options.check:
            check(root)
        elif options.fetch:
            check_inputs(root)
            from workflow.graph import open_pipeline

            with open_pipeline(root) as pipeline:
                fetch(pipeline)
        else:
            if options.from_scratch is not None:
                from workflow.recompute import recompute

                recompute(root, options.from_scratch, options.keep_bases)
                choice = "keep" if options.keep_bases else "retrain"
            reproduce(root, choice)
            print("\n" + update_readme(root))
            print(f"Figures and tables: {root / 'figures'}   Results: {root / 'results'}")
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
