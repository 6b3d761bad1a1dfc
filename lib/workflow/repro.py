"""`dvc repro` for people: also on a fresh clone, where intermediate files were never pushed.

    python -m workflow.repro                        everything in params.yaml's `run`, up to date
    python -m workflow.repro --check                name the stale stages, run nothing
    python -m workflow.repro --fetch                only restore what the repository carries
    python -m workflow.repro --from-scratch [MODEL] recompute all models or one, caches ignored
                             … --keep-bases         all but the training of the base models

DVC skips a stage whose inputs are absent but unchanged. A stage that must run needs them, so what
it lacks is restored first: from the repository's store, or else by running the stage that makes it.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import networkx
from dvc.cli import main as dvc
from dvc.dependency import param
from dvc.output import Output
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from dvc.stage import Stage

from study.config import find_root, load_params
from study.corpora import check_fingerprint, ensure_corpus
from workflow.code import find_uses, write_copies


def reproduce(root: Path) -> None:
    """Bring everything up to date with the fewest stages run.

    Raises:
        ValueError: params.yaml or a corpus is not valid.
        SystemExit: a stage failed; DVC has said which.
    """
    check_inputs(root)
    while True:
        stale = find_stale(root)
        lost = find_lost(root, stale)
        if not stale and not lost:  # DVC would look at every stage once more to find the same
            return
        for path in find_lacking(root, stale, lost):
            restore(root, path)
        for stage in lost:  # DVC alone would take them for unchanged
            run_dvc("repro", "--force", "--single-item", stage)
        code = dvc(["repro", "--pull", "--allow-missing"])
        if code == 0 and not find_lost(root, []):
            return
        stale = find_stale(root)
        if code and not find_lacking(root, stale, find_lost(root, stale)):
            raise SystemExit(code)


def check_inputs(root: Path) -> None:
    """Check params.yaml and the corpora that exist, and renew the copies of the code."""
    params = load_params(root)
    for corpus in params.corpora:
        if (root / "data" / corpus).exists():
            check_fingerprint(f"data/{corpus}", root)
    write_copies(root, params)


def find_stale(root: Path) -> list[str]:
    """The stages that have to run because code, parameters, inputs or outputs have changed.

    The stage that copies the code always runs, and is not counted.
    """
    repo = Repo(str(root))
    graph = repo.index.graph
    with repo.lock, _params_read_once():
        return [
            stage.addressing
            for stage in plan_repro(graph)
            if not stage.always_changed and stage.changed(True, list(graph.successors(stage)))
        ]


def find_lost(root: Path, stale: list[str]) -> list[str]:
    """The stages with a result that git tracks and that is gone, where nothing before is stale."""
    repo = Repo(str(root))
    return [
        stage.addressing
        for stage in plan_repro(repo.index.graph)
        if any(not out.use_cache and not out.exists for out in stage.outs)
        and not stage.always_changed
        and _is_settled(repo, stage, stale)
    ]


def find_lacking(root: Path, stale: list[str], lost: list[str]) -> list[str]:
    """The missing files that stages to be run read, if they are what their own stage would make.

    What a stale stage makes, or one after it, is left to `dvc repro`.
    """
    repo = Repo(str(root))
    waiting = [stage for stage in repo.index.stages if stage.addressing in (*stale, *lost)]
    return list(
        dict.fromkeys(
            os.path.relpath(out.fs_path, root)
            for stage in waiting
            for owner, out in _missing_inputs(repo, stage)
            if _is_settled(repo, owner, stale)
        )
    )


def restore(root: Path, path: str) -> None:
    """Bring a missing file back: checked out, pulled, or made again by its own stage."""
    repo = Repo(str(root))
    full = os.fspath(root / path)
    owner, out = next(
        (stage, out) for stage in repo.index.stages for out in stage.outs if out.fs_path == full
    )
    if out.exists:
        return
    if out.use_cache and out.hash_info:
        with repo.lock:
            in_cache = not out.changed_cache()
        if (in_cache or out.can_push) and dvc(["checkout" if in_cache else "pull", path]) == 0:
            return
    for _, needed in _missing_inputs(repo, owner):
        restore(root, os.path.relpath(needed.fs_path, root))
    run_dvc("repro", "--force", "--single-item", owner.addressing)


def fetch(root: Path) -> None:
    """Restore what the repository's store carries for other stages: bases and permutations."""
    repo = Repo(str(root))
    read = [Path(dep.fs_path) for stage in repo.index.stages for dep in stage.deps]
    absent = [
        os.path.relpath(out.fs_path, root)
        for stage in repo.index.stages
        for out in stage.outs
        if out.use_cache
        and out.can_push
        and not out.exists
        and out.hash_info
        and any(_overlap(Path(out.fs_path), path) for path in read)
    ]
    if absent:
        run_dvc("pull", *absent)


def recompute(root: Path, models: list[str], keep_bases: bool = False) -> None:
    """Recompute models and their corpora, caches ignored, then bring the rest up to date.

    As many stages run side by side as there are cores for `threads` threads each (small models
    gain little from a second thread): of each model first what all its variants need, then the
    variants, a few at a time.

    Args:
        root: the folder of params.yaml.
        models: names in params.yaml's `run`.
        keep_bases: restore the trained base models instead of training them anew.

    Raises:
        ValueError: a model that is not among those to run.
        SystemExit: a stage failed; DVC has said which.
    """
    params = load_params(root)
    for model in models:
        if model not in params.running:
            valid = ", ".join(params.running)
            raise ValueError(f"MODEL {model!r} is not in run; valid are {valid}")
    uses = [use for model in models for use in find_uses(params.models[model]).values()]
    for path in dict.fromkeys(use.data.path for use in uses if use.data.corpus):
        shutil.rmtree(root / path, ignore_errors=True)
        ensure_corpus(path, params, root)
    if keep_bases:
        fetch(root)
    for model in models:
        for path in (root / "models" / model).glob("*"):
            if not (keep_bases and path.name == "base"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    check_inputs(root)
    graph = Repo(str(root)).index.graph
    stages = plan_repro(graph)
    if keep_bases:
        stages = [stage for stage in stages if not _trains_base(stage)]
    plans = [split([s for s in stages if _makes(s, model, root)], graph) for model in models]
    side_by_side = max(1, (os.cpu_count() or 1) // params.threads)
    with ThreadPoolExecutor(side_by_side) as pool:
        first = {pool.submit(_run_chain, common): chunks for common, chunks in plans}
        rest, codes = [], []
        for done in as_completed(first):
            codes.append(done.result())
            if not codes[-1]:
                rest += [pool.submit(_run_chain, chunk) for chunk in first[done]]
        codes += [chunk.result() for chunk in rest]
    if any(codes):
        raise SystemExit(max(codes))
    reproduce(root)


def split(
    stages: list[Stage], graph: networkx.DiGraph, n: int = 4
) -> tuple[list[Stage], list[list[Stage]]]:
    """Part the stages of one model into what has to run first and what can run side by side.

    Args:
        stages: in an order in which they can run.
        graph: DVC's, from a stage to what it needs.
        n: chunks to make of what can run side by side.

    Returns:
        What several last stages need, and at most n chunks of the others, in the same order.

    Invariant: no stage of a chunk needs one of another chunk.
    """
    mine = graph.subgraph(stages)
    lasts = [stage for stage in stages if not mine.in_degree(stage)]
    needed = {last: networkx.descendants(mine, last) | {last} for last in lasts}
    common, groups = [], {last: [] for last in lasts}
    for stage in stages:
        owners = [last for last in lasts if stage in needed[last]]
        (common if len(owners) > 1 else groups[owners[0]]).append(stage)
    dealt = [list(groups.values())[i::n] for i in range(n)]
    return common, [list(chain.from_iterable(chunk)) for chunk in dealt if chunk]


def _makes(stage: Stage, model: str, root: Path) -> bool:
    """Whether a stage makes something of one model."""
    folders = [Path(out.fs_path).relative_to(root).parts[:3] for out in stage.outs]
    return any(parts[0] in ("models", "results") and model in parts for parts in folders)


def _trains_base(stage: Stage) -> bool:
    return any(Path(out.fs_path).parts[-3::2] == ("models", "base") for out in stage.outs)


def _run_chain(stages: list[Stage]) -> int:
    """Run stages one after the other in a process of its own; returns its exit code."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro"]
    options = ["--force", "--no-run-cache", "--single-item"]
    names = [stage.addressing for stage in stages]
    return subprocess.run([*command, *options, *names]).returncode if names else 0


def update_readme(root: Path) -> str:
    """Put the generated results between the README's markers; returns them."""
    readme, table = root / "README.md", (root / "figures" / "results.md").read_text()
    start, end = "<!-- results -->", "<!-- /results -->"
    text = readme.read_text() if readme.exists() else ""
    if start in text:
        before, _, rest = text.partition(start)
        updated = f"{before}{start}\n{table}{end}{rest.partition(end)[2]}"
        if updated != text:
            partial = readme.with_name(".README.partial")
            partial.write_text(updated)
            partial.replace(readme)
    return table


def run_dvc(*arguments: str) -> None:
    """Run one dvc command and stop if it fails."""
    code = dvc(list(arguments))
    if code:
        raise SystemExit(code)


@contextmanager
def _params_read_once() -> Iterator[None]:
    """DVC parses params.yaml anew for every stage; while nothing runs, once is enough."""
    read, seen = param.load_path, {}

    def read_once(path: str, fs, **options):
        if path not in seen:
            seen[path] = read(path, fs, **options)
        return seen[path]

    param.load_path = read_once
    try:
        yield
    finally:
        param.load_path = read


def _missing_inputs(repo: Repo, stage: Stage) -> list[tuple[Stage, Output]]:
    """The outputs of other stages that a stage reads and that are not there, with their stages."""
    wanted = [Path(dep.fs_path) for dep in stage.deps]
    return [
        (owner, out)
        for owner in repo.index.stages
        for out in owner.outs
        if not out.exists and any(_overlap(Path(out.fs_path), path) for path in wanted)
    ]


def _is_settled(repo: Repo, stage: Stage, stale: list[str]) -> bool:
    """Whether neither a stage nor anything before it has to run."""
    graph = repo.index.graph  # its edges point from a stage to what it needs
    before = {stage, *networkx.descendants(graph, stage)}
    return not any(needed.addressing in stale for needed in before)


def _overlap(a: Path, b: Path) -> bool:
    return a == b or a in b.parents or b in a.parents


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workflow.repro")
    parser.add_argument("--check", action="store_true", help="name the stale stages, run nothing")
    parser.add_argument("--fetch", action="store_true", help="only restore what is stored")
    parser.add_argument(
        "--from-scratch", metavar="MODEL", nargs="*", help="recompute these models, or all"
    )
    parser.add_argument("--keep-bases", action="store_true", help="recompute all but base models")
    options = parser.parse_args(arguments)
    try:
        root = find_root()
        os.chdir(root)
        if options.check:
            check_inputs(root)
            stale = find_stale(root)
            stale += find_lost(root, stale)
            if stale:
                raise SystemExit("stale: " + ", ".join(stale))
            print("no stage is stale")
            return
        if options.fetch:
            fetch(root)
            return
        if options.from_scratch is not None:
            models = options.from_scratch or load_params(root).running
            recompute(root, models, options.keep_bases)
        else:
            reproduce(root)
            fetch(root)
        print("\n" + update_readme(root))
        print(f"Figures and tables: {root / 'figures'}   Results: {root / 'results'}")
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
