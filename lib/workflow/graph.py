"""The stages of dvc.yaml and what dvc.lock says of them: all that uses the insides of DVC.

    python -m workflow.graph STAGE …    run stages one after the other, stale or not

A `Pipeline` opens the repository once for a command. A stage is stale when its command, a setting,
its code, an input or an output is not what dvc.lock says. What is absent but unchanged is no
reason: a clone carries only what lies in git and in the store.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from dvc.config import NoRemoteError
from dvc.dependency import ParamsDependency
from dvc.dvcfile import Lockfile, load_file
from dvc.exceptions import DvcException
from dvc.logger import setup
from dvc.output import Output
from dvc.repo import Repo, lock_repo
from dvc.repo.trie import build_outs_trie
from dvc.stage import Stage, serialize
from dvc.utils import strictyaml
from dvc.utils.serialize import _yaml
from dvc_data.hashfile._progress import QueryingProgress
from dvc_data.hashfile.tree import Tree
from yaml import YAMLError

from ffmerge.files import replacing
from workflow import lockfile

GENERATED = ("dvc.lock", "stages.yaml", "params.yaml")  # params.yaml was checked before


class Pipeline:
    """The stages of dvc.yaml, by name.

    Attributes:
        order: names of stages in an order in which they can run.
        needs: name to the stages whose outputs it reads.
    """

    def __init__(self, repo: Repo) -> None:
        """Args: repo: locked."""
        self.repo = repo
        loaded = load_file(repo, os.path.join(repo.root_dir, "dvc.yaml")).stages.values()
        self.stages: dict[str, Stage] = {stage.addressing: stage for stage in loaded}
        trie = build_outs_trie(self.stages.values())
        self.made: dict[str, dict[str, list[Output]]] = {  # of a stage: path to outputs of others
            name: {d.fs_path: _find_overlaps(trie, d.fs.parts(d.fs_path)) for d in stage.deps}
            for name, stage in self.stages.items()
        }
        self.inputs: dict[str, list[Output]] = {  # all of those that a stage reads
            name: [out for outs in paths.values() for out in outs]
            for name, paths in self.made.items()
        }
        self.needs = {
            name: list(dict.fromkeys(out.stage.addressing for out in outs))
            for name, outs in self.inputs.items()
        }
        self.order = sort(self.needs)

    def always_runs(self, name: str) -> bool:
        """Whether a stage runs every time, whatever has changed: the one that copies the code."""
        return self.stages[name].always_changed

    def has_run(self, name: str) -> bool:
        """Whether dvc.lock knows a stage."""
        stage = self.stages[name]
        return any(out.hash_info for out in (*stage.deps, *stage.outs))

    def has_results(self, name: str) -> bool:
        """Whether a result of a stage that git tracks is there, whatever dvc.lock says."""
        return any(not o.use_cache and os.path.exists(o.fs_path) for o in self.stages[name].outs)

    def find_reasons(self, name: str) -> list[str]:
        """Why a stage has to run: what differs from dvc.lock, in words; nothing if it does not."""
        stage = self.stages[name]
        if not self.has_run(name):
            return ["it never ran"]
        reasons = ["its command"] if stage.cmd_changed else []
        for dep in stage.deps:
            if isinstance(dep, ParamsDependency):
                recorded = dep.hash_info.value
                reasons += (
                    find_changes(recorded, dep.read_params()) if recorded else [_describe(dep)]
                )
            elif os.path.exists(dep.fs_path):
                reasons += [_describe(dep)] if dep.changed_checksum() else []
            elif any(dep.hash_info != out.hash_info for out in self._find_same(name, dep)):
                reasons.append(_describe(dep))
            elif not self.made[name][dep.fs_path]:
                reasons.append(f"{dep.def_path} is gone")  # and no stage makes it
        for out in stage.outs:
            if os.path.exists(out.fs_path) and out.changed_checksum():
                reasons.append(f"{out.def_path} was altered")
        return list(dict.fromkeys(reasons))

    def find_lost(self, name: str) -> list[str]:
        """The results of a stage that git tracks and that are gone."""
        outs = self.stages[name].outs
        return [o.def_path for o in outs if not o.use_cache and not os.path.exists(o.fs_path)]

    def find_missing(self, name: str) -> list[Output]:
        """The outputs of other stages that a stage reads and that are not there."""
        return [out for out in self.inputs[name] if not os.path.exists(out.fs_path)]

    def find_carried(self) -> list[Output]:
        """The outputs that stages read and the store is to carry, and that are not there."""
        read = {out.fs_path: out for outs in self.inputs.values() for out in outs}
        return [
            out
            for path, out in read.items()
            if out.use_cache and out.can_push and out.hash_info and not os.path.exists(path)
        ]

    def is_stored(self, out: Output) -> bool:
        """Whether the cache or the store holds all of an output."""
        if not out.use_cache or not out.hash_info:
            return False
        return any(_holds(odb, out) for odb in (out.cache, self._store if out.can_push else None))

    def fetch(self, out: Output) -> bool:
        """Bring a stored output back; returns whether that went well.

        (`repo.pull` does the same, and reads dvc.lock five times for each: twelve seconds.)
        """
        try:
            if not _holds(out.cache, out):
                for place, objects in out.get_used_objs().items():
                    self.repo.cloud.pull(objects, odb=place)
            out.checkout()
        except DvcException:
            return False
        return os.path.exists(out.fs_path)

    def run(self, name: str, force: bool = False) -> None:
        """Run a stage and write its entry of dvc.lock.

        Args:
            name: of the stage.
            force: run it even if DVC remembers a run with the same inputs.

        Raises:
            SystemExit: it failed; it has said why.
        """
        stage = self.stages[name]
        try:
            stage.run(force=force)
            stage.dump(update_pipeline=False)
        except DvcException as error:
            raise SystemExit(f"error: stage {name} failed: {error}") from None
        print(flush=True)

    @cached_property
    def _store(self):
        try:
            return self.repo.cloud.get_remote_odb(hash_name="md5")
        except NoRemoteError:
            return None

    def _find_same(self, name: str, dep: Output) -> list[Output]:
        return [out for out in self.made[name][dep.fs_path] if out.fs_path == dep.fs_path]


@contextmanager
def open_pipeline(root: Path, wait: bool = False) -> Iterator[Pipeline]:
    """The pipeline of a repository, which is locked meanwhile (but not while a stage runs).

    Args:
        root: the folder of dvc.yaml.
        wait: for another process that has it locked, for as long as it takes.

    Raises:
        ValueError: dvc.yaml is not valid, or another process has the repository locked.
    """
    if not logging.getLogger("dvc").handlers:
        setup()
    try:
        repo = Repo(str(root), _wait_for_lock=wait)
        with lock_repo(repo):
            _mend_locks(Path(repo.tmp_dir))
            pipeline = Pipeline(repo)
            yield pipeline
    except DvcException as error:
        raise ValueError(" ".join(str(error).split())) from None


def _mend_locks(folder: Path) -> None:
    """A run that was killed while DVC wrote down who reads what leaves an empty file: nobody."""
    locks = folder / "rwlock"
    if locks.exists() and locks.stat().st_size == 0:
        locks.unlink()


def sort(needs: dict[str, list[str]]) -> list[str]:
    """Names in an order in which each comes after all that it needs, and close to them.

    Raises:
        ValueError: some need each other.
    """
    order: dict[str, None] = {}
    for name in needs:
        _visit(name, needs, order, ())
    return list(order)


def find_changes(old: dict, new: dict, where: str = "") -> list[str]:
    """The values that differ, as `training.steps 200 → 400`; sections are looked into."""
    changes = []
    for key in dict.fromkeys((*old, *new)):
        place, a, b = f"{where}{key}", old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += find_changes(a, b, f"{place}.")
        elif a != b:
            changes.append(f"{place} {_shorten(a)} → {_shorten(b)}")
    return changes


def _visit(name: str, needs: dict[str, list[str]], order: dict, waiting: tuple) -> None:
    if name in waiting:
        raise ValueError(f"dvc.yaml: stages need each other: {' → '.join((*waiting, name))}")
    if name not in order:
        for needed in needs[name]:
            _visit(needed, needs, order, (*waiting, name))
        order[name] = None


def _find_overlaps(trie, key: tuple) -> list[Output]:
    """The outputs that are a path, lie above it or below it."""
    above = [node.value for node in trie.prefixes(key)]
    return above + (trie.values(prefix=key) if trie.has_subtrie(key) else [])


def _describe(dep: Output) -> str:
    path = Path(dep.def_path)
    if path.parts[0] != ".code":
        return path.as_posix()
    return f"{'settings' if path.suffix == '.json' else 'code'} of {path.stem}"


def _shorten(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _holds(odb, out: Output) -> bool:
    """Whether a place for objects holds all of an output."""
    key = out.hash_info
    if odb is None or not odb.exists(key.value):
        return False
    try:
        return not key.isdir or all(odb.exists(oid.value) for _, _, oid in Tree.load(odb, key))
    except DvcException:
        return False


_parse_slowly = _yaml.parse_yaml


def _parse(text: str, path: str, typ: str = "safe") -> dict:
    """As DVC's, but what a program wrote, or has checked, is read by libyaml."""
    if typ == "safe" and Path(path).name in GENERATED:
        try:
            return lockfile.parse(text)
        except YAMLError:
            pass  # DVC's own parser says better what is wrong
    return _parse_slowly(text, path, typ)


def _dump_stages(self: Lockfile, stages: list[Stage], **kwargs) -> None:
    """As DVC's, to the same bytes; but only the entries of these stages, whole or not at all."""
    path = Path(self.path)
    text = before = path.read_text(encoding="utf-8") if path.exists() else lockfile.EMPTY
    for stage in stages:
        block = _yaml.dumps_yaml({"stages": serialize.to_lockfile(stage, **kwargs)})
        text = lockfile.replace_entry(text, block.partition("\n")[2])
    if text != before:
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
        self.repo.scm_context.track_file(self.relpath)


def _start_progress(self: QueryingProgress, *args, name: str | None = None, **kwargs) -> None:
    """As DVC's, which takes `{` and `}` in the path of a clone for places to fill in."""
    name = name and name.replace("{", "{{").replace("}", "}}")
    _start_progress_plainly(self, *args, name=name, **kwargs)


_start_progress_plainly = QueryingProgress.__init__
QueryingProgress.__init__ = _start_progress
strictyaml.parse_yaml = _yaml.parse_yaml = _parse
Lockfile.dump_stages = _dump_stages


def main(names: list[str] | None = None) -> None:
    """Run stages one after the other; several such processes may run side by side."""
    try:
        with open_pipeline(Path.cwd(), wait=True) as pipeline:
            for name in sys.argv[1:] if names is None else names:
                pipeline.run(name, force=True)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
