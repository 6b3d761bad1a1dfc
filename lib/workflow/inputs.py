"""What stages need before they run: checked, renewed, and brought back where it is missing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from study.config import Params, load_params
from workflow.planning import is_base

if TYPE_CHECKING:  # a wrong name in params.yaml is answered before DVC is imported
    from workflow.graph import Pipeline


def check_inputs(root: Path) -> Params:
    """Check params.yaml and the corpora that exist; renew `.code/` and results/stages.yaml.

    Raises:
        ValueError: one of them is not valid, or the folder is not a git repository.
    """
    params = load_params(root)
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        raise ValueError(
            f"{root} is not a git repository, which DVC needs (an archive is not one); valid is a "
            "clone, or `git init` in this folder"
        )
    from study.corpora import check_fingerprint  # imports pyarrow
    from workflow.code import write_copies
    from workflow.stages import write_stages

    for corpus in params.corpora:
        if (root / "data" / corpus).exists():
            check_fingerprint(f"data/{corpus}", root)
    write_stages(root, params)
    write_copies(root, params)
    return params


def ask_hub(params: Params, stages: Iterable[str]) -> None:
    """Ask the hub for the bases that stages will fetch, and for the data of their models.

    Raises:
        ValueError: a model or a data set is refused, or not reached and was never fetched.
    """
    models = [model for model in params.models if f"fetch@{model}" in stages]
    entries = [entry for entry in map(params.model, models) if entry.base.hub]
    if not entries:
        return
    from huggingface_hub import hf_hub_download

    from ffmerge.hub import asking_hub, is_hub_id
    from study.architectures import list_uses

    for entry in entries:
        hub, revision = entry.base.hub, entry.base.revision
        with asking_hub(hub, "model", revision):
            if is_hub_id(hub):
                hf_hub_download(hub, "config.json", revision=revision)
        for data in (use.data for _, use in list_uses(entry) if not use.data.corpus):
            with asking_hub(data.path, "dataset", data.revision):
                pass  # what it refuses is said now; what it serves is loaded by the stages


def provide(pipeline: Pipeline, name: str) -> None:
    """Bring back what a stage reads and is missing: from the store, or made by its own stage."""
    for out in pipeline.find_missing(name):
        if out.exists or (pipeline.is_stored(out) and pipeline.fetch(out)):
            continue
        owner = out.stage.addressing
        provide(pipeline, owner)
        pipeline.run(owner, force=True)


def fetch(pipeline: Pipeline) -> None:
    """Restore what the repository carries for its stages: bases and permutations.

    Raises:
        ValueError: a base is not in the store.
        SystemExit: something else was not there, and the stage that makes it failed.
    """
    for out in pipeline.find_carried():
        if pipeline.is_stored(out) and pipeline.fetch(out):
            continue
        owner = out.stage.addressing
        if is_base(owner):
            raise ValueError(
                f"{out.def_path} is neither here nor whole in the store; `git checkout .dvc/store` "
                f"may bring it back, `python -m workflow.graph {owner}` trains it anew"
            )
        print(f"{out.def_path} is not in the store; {owner} makes it again", flush=True)
        provide(pipeline, owner)
        pipeline.run(owner, force=True)
