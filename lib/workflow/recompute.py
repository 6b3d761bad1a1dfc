"""Recompute models from nothing, as many stages side by side as there are cores for them."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain
from pathlib import Path

from ffmerge.files import remove
from study.config import load_params
from study.corpora import ensure_corpus
from workflow import durations
from workflow.graph import open_pipeline
from workflow.inputs import check_inputs, fetch
from workflow.planning import is_base
from workflow.stages import check_models, find_models


def recompute(root: Path, models: Sequence[str] = (), keep_bases: bool = False) -> None:
    """Recompute models and their corpora, caches ignored; what they share is left to `reproduce`.

    Of each model first what all its variants need, then the variants, a few at a time: small
    models gain little from a second thread.

    Args:
        root: the folder of params.yaml.
        models: names in params.yaml's `run`; without any all of them.
        keep_bases: restore the trained base models instead of training them anew.

    Raises:
        ValueError: a model that is not among those to run.
        SystemExit: a stage failed, and has said why.
    """
    params = load_params(root)
    durations.describe()  # its stages need not ask again
    models = list(models or params.run)
    check_models(models, params)
    uses = [use for name in models for use in (params.models[name], params.models[name].recovery)]
    for path in dict.fromkeys(use.data.path for use in uses if use.data.corpus):
        remove(root / path)
        ensure_corpus(path, params, root)
    check_inputs(root)
    with open_pipeline(root) as pipeline:
        if keep_bases:
            fetch(pipeline)
        order, needs = pipeline.order, pipeline.needs
    for model in models:
        for path in (root / "models" / model).glob("*"):
            if not (keep_bases and path.name == "base"):
                remove(path)
    of = find_models(params)
    order = [name for name in order if not (keep_bases and is_base(name))]
    plans = [split([name for name in order if of.get(name) == model], needs) for model in models]
    codes = _run_side_by_side(plans, max(1, (os.cpu_count() or 1) // params.threads))
    if any(codes):
        raise SystemExit(max(codes))


def split(
    stages: Sequence[str], needs: Mapping[str, Sequence[str]], n: int = 4
) -> tuple[list[str], list[list[str]]]:
    """Part the stages of one model into what has to run first and what can run side by side.

    Args:
        stages: names, in an order in which they can run.
        needs: name to the stages that it needs.
        n: chunks to make of what can run side by side.

    Returns:
        What several last stages need, and at most n chunks of the others, in the same order.

    Invariant: no stage of a chunk needs one of another chunk.
    """
    lasts = {stage: {stage} for stage in stages}  # to the last stages that need it
    for stage in reversed(stages):
        for needed in needs.get(stage, ()):
            if needed in lasts:
                lasts[needed] = (lasts[needed] - {needed}) | lasts[stage]
    common = [stage for stage in stages if len(lasts[stage]) > 1]
    groups: dict[str, list[str]] = {}
    for stage in stages:
        if stage not in common:
            groups.setdefault(min(lasts[stage]), []).append(stage)
    dealt = [list(groups.values())[i::n] for i in range(n)]
    return common, [list(chain.from_iterable(chunk)) for chunk in dealt if chunk]


def _run_side_by_side(plans: list[tuple[list[str], list[list[str]]]], n: int) -> list[int]:
    """Run every plan's common stages, then its chunks; n processes at a time. Exit codes."""
    with ThreadPoolExecutor(n) as pool:
        first = {pool.submit(_run_chain, common): chunks for common, chunks in plans}
        rest, codes = [], []
        for done in as_completed(first):
            codes.append(done.result())
            if not codes[-1]:
                rest += [pool.submit(_run_chain, chunk) for chunk in first[done]]
        return codes + [chunk.result() for chunk in rest]


def _run_chain(stages: list[str]) -> int:
    """Run stages one after the other in a process of its own; returns its exit code."""
    command = [sys.executable, "-m", "workflow.graph", *stages]
    return subprocess.run(command).returncode if stages else 0
