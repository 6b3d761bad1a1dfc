"""Save and load models with shared sublayers: one copy on disk, still shared when loaded.

Beside the usual files lies `sharing.json`, which lists the module names that are one object.
transformers' own `_tied_weights_keys` cannot be used for this: it is ignored unless the word
embeddings are tied too, and it ties parameters where modules must be tied.
"""

import hashlib
import json
from pathlib import Path

import transformers
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from ffmerge.files import read_json, replacing, write_json

SHARING = "sharing.json"


def find_shared_modules(model: nn.Module) -> list[list[str]]:
    """The groups of names under which one and the same module with parameters appears.

    Returns:
        [["encoder.layers.3.fc1", "encoder.layers.4.fc1", …], …], first name first.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if next(module.parameters(recurse=False), None) is not None:
            names.setdefault(module, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def shared_keys(model: nn.Module) -> dict[str, str]:
    """Every parameter name that repeats another one because its module is shared.

    Returns:
        {repeated name: first name}.
    """
    return {
        f"{name}.{parameter}": f"{group[0]}.{parameter}"
        for group in find_shared_modules(model)
        for parameter, _ in model.get_submodule(group[0]).named_parameters(recurse=False)
        for name in group[1:]
    }


def save(model: PreTrainedModel, path: str | Path) -> Path:
    """Save a model with every shared sublayer once; all of it, or nothing.

    Args:
        model: merged or not.
        path: a folder; replaced if it exists.

    Returns:
        The folder.

    Invariant: `load(save(model, path))` gives bitwise equal logits, still shared.
    """
    path = Path(path)
    repeated = shared_keys(model)
    with replacing(path) as partial:
        state = {key: value for key, value in model.state_dict().items() if key not in repeated}
        model.save_pretrained(partial, state_dict=state)
        groups = find_shared_modules(model)
        content = {"groups": groups, "digest": _digest(groups, partial)}
        write_json(content if groups else [], partial / SHARING)
    return path


def load(path: str | Path, **kwargs) -> PreTrainedModel:
    """Load a model that `save` wrote, or any transformers checkpoint, and share its modules again.

    Args:
        path: the folder (a Path), or a hub name (a string).
        kwargs: passed on to `from_pretrained`, such as dtype or quantization_config. Code that
            comes with a checkpoint is never run.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: a local folder that is not there.
        ValueError: the file lacks weights that no sharing explains, or its sharing was altered.
    """
    folder = Path(path)
    if isinstance(path, Path) and not path.exists():
        raise FileNotFoundError(f"no model in {path}; valid is a folder that `save` wrote")
    groups = _read_sharing(folder)
    config = transformers.AutoConfig.from_pretrained(
        path, revision=kwargs.get("revision"), trust_remote_code=False
    )
    model_class = getattr(transformers, config.architectures[0])
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # shared names are missing from the file by design
    try:
        model, info = model_class.from_pretrained(path, output_loading_info=True, **kwargs)
    finally:
        transformers.logging.set_verbosity(verbosity)
    for first, *others in groups:
        for name in others:
            model.set_submodule(name, model.get_submodule(first), strict=True)
    unexplained = set(info["missing_keys"]) - set(shared_keys(model))
    if unexplained or info["mismatched_keys"]:
        raise ValueError(
            f"checkpoint {path} lacks weights or holds others of another shape: "
            f"{sorted(unexplained) or sorted(map(str, info['mismatched_keys']))}"
        )
    return model.eval()


def _read_sharing(folder: Path) -> list[list[str]]:
    """The groups of names that share, as `save` wrote them; none in a checkpoint of others.

    Raises:
        ValueError: the file is not what `save` wrote beside these weights.
    """
    file = folder / SHARING
    if not file.exists():
        return []
    try:
        content = read_json(file)
        if content == []:
            return []
        groups, digest = content["groups"], content["digest"]
    except (ValueError, TypeError, KeyError):
        groups, digest = None, ""
    if digest != _digest(groups, folder):
        raise ValueError(f"{file} was altered; valid is the file that was saved with the weights")
    return groups


def _digest(groups: list[list[str]] | None, folder: Path) -> str:
    """Names the groups and the weights that they belong to: the names in the weight files."""
    names = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names += opened.keys()
    return hashlib.sha256(json.dumps([groups, sorted(names)]).encode()).hexdigest()


def size_on_disk(path: str | Path) -> int:
    """Bytes of the weight files in a model's folder."""
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
