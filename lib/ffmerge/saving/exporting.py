"""Plain folders for tools that know nothing of sharing: every layer with its own copy."""

import copy
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from torch import nn

from ffmerge.checkpoints import load, save
from ffmerge.files import STAGING
from ffmerge.saving.folders import OWN, PROCESSOR, check_folder, read_own
from ffmerge.saving.sharing import find_shared_modules, find_untold_widths, remember


def export(folder: str | Path, out: str | Path, *, max_shard_size: str = "5GB") -> Path:
    """Write a model out as a plain one, which anything loads (lm-eval, converters to GGUF).

    Args:
        folder: that `save` wrote.
        out: a new or empty folder, or one that was exported to before.
        max_shard_size: a file gets no larger than this.

    Returns:
        `out`: the model, untied, with the tokenizer or processor of `folder`.

    Raises:
        ValueError: sublayers of widths that no plain configuration can say.

    Invariant: the plain model computes what the shared one does; it is as large as the base.
    """
    folder, out = Path(folder), Path(out)
    check_folder(out)
    inside = folder.resolve() in (out.resolve(), *out.resolve().parents)
    others = [file for file in out.glob("*") if file.name != STAGING]
    if inside or (others and read_own(out) != []):  # not even a model that still shares
        told = "in the folder that is exported" if inside else f"which holds {others[0].name}"
        raise ValueError(f"out is {out}, {told}; valid is another one, new or empty")
    if widths := find_untold_widths(model := load(folder)):
        raise ValueError(
            f"model in {folder} has FF sublayers of {widths}; a plain model has one width in a "
            "stack, and a configuration that says it, so valid is a model pruned evenly or shared"
        )
    processor = SimpleNamespace(save_pretrained=partial(_copy_processor, folder))
    return save(untie(model), out, processor, max_shard_size=max_shard_size)


def untie(model: nn.Module) -> nn.Module:
    """Give every layer of a shared sublayer its own copy, in place.

    Returns:
        The model, which computes what it did and is as large as before it was merged.
    """
    for _, *names in find_shared_modules(model):
        for name in names:
            model.set_submodule(name, copy.deepcopy(model.get_submodule(name)), strict=True)
    vars(model).pop("ffmerge_plan", None)
    return remember(model)


def _copy_processor(folder: Path, out: Path) -> None:
    """A tokenizer's or a processor's files, as they lie beside a model."""
    for file in folder.iterdir():
        if PROCESSOR.fullmatch(file.name) and not OWN.fullmatch(file.name):
            (shutil.copytree if file.is_dir() else shutil.copyfile)(file, out / file.name)
