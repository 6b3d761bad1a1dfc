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
from ffmerge.sublayers import find_stacks, set_widths

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
        groups, widths = find_shared_modules(model), _find_uneven_widths(model)
        content = {"groups": groups} | ({"neurons": widths} if widths else {})
        content["digest"] = _digest(groups, widths, partial)
        write_json(content if groups or widths else [], partial / SHARING)
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
    groups, widths = _read_sharing(folder)
    config = transformers.AutoConfig.from_pretrained(
        path, revision=kwargs.get("revision"), trust_remote_code=False
    )
    model_class = getattr(transformers, config.architectures[0])
    sized = _give_widths(model_class, widths)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # shared names are missing from the file by design
    try:
        model, info = sized.from_pretrained(path, output_loading_info=True, **kwargs)
    finally:
        transformers.logging.set_verbosity(verbosity)
    model.__class__ = model_class
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


def _find_uneven_widths(model: nn.Module) -> dict[str, list[int]]:
    """d_ff of every sublayer, by stack, where the configuration's one number cannot say it."""
    widths = {name: [ff.d_ff for ff in s.sublayers] for name, s in find_stacks(model).items()}
    return widths if any(len(set(of_stack)) > 1 for of_stack in widths.values()) else {}


def _give_widths(model_class: type, widths: dict[str, list[int]]) -> type:
    """A model class whose FF sublayers have these widths before any weight is read."""
    if not widths:
        return model_class

    def build(self, config, *args, **kwargs) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        for name, stack in find_stacks(self).items():
            set_widths(self, stack, widths[name])

    return type(model_class.__name__, (model_class,), {"__init__": build})


def _read_sharing(folder: Path) -> tuple[list[list[str]], dict[str, list[int]]]:
    """The names that share, and uneven widths, as `save` wrote them; none in others' checkpoints.

    Raises:
        ValueError: the file is not what `save` wrote beside these weights.
    """
    file = folder / SHARING
    if not file.exists():
        return [], {}
    try:
        content = read_json(file)
        if content == []:
            return [], {}
        groups, widths, digest = content["groups"], content.get("neurons", {}), content["digest"]
    except (ValueError, TypeError, KeyError):
        groups, widths, digest = None, {}, ""
    if digest != _digest(groups, widths, folder):
        raise ValueError(f"{file} was altered; valid is the file that was saved with the weights")
    return groups, widths


def _digest(groups: list[list[str]] | None, widths: dict[str, list[int]], folder: Path) -> str:
    """Names the groups and the weights that they belong to: the names in the weight files."""
    names = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names += opened.keys()
    told = [groups, *([widths] if widths else []), sorted(names)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def size_on_disk(path: str | Path) -> int:
    """Bytes of the weight files in a model's folder."""
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
