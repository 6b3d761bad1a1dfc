"""Save and load models with shared sublayers: one copy on disk, still shared when loaded.

Beside the usual files lies `sharing.json`, which lists the module names that are one object.
transformers' own `_tied_weights_keys` cannot be used for this: it is ignored unless the word
embeddings are tied too, and it ties parameters where modules must be tied.
"""

import json
import os
import shutil
from pathlib import Path

import transformers
from torch import nn
from transformers import PreTrainedModel

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
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    repeated = shared_keys(model)
    state = {key: value for key, value in model.state_dict().items() if key not in repeated}
    model.save_pretrained(partial, state_dict=state)
    (partial / SHARING).write_text(json.dumps(find_shared_modules(model), indent=1) + "\n")
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, path)
    return path


def load(path: str | Path, **kwargs) -> PreTrainedModel:
    """Load a model that `save` wrote, or any transformers checkpoint, and share its modules again.

    Args:
        path: the folder (a Path), or a hub name (a string).
        kwargs: passed on to `from_pretrained`, such as dtype or quantization_config.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: a local folder that is not there.
        ValueError: the file lacks weights that no sharing explains.
    """
    folder = Path(path)
    if isinstance(path, Path) and not path.exists():
        raise FileNotFoundError(f"no model in {path}; `make repro` or `make lab` brings it there")
    sharing = folder / SHARING
    groups = json.loads(sharing.read_text()) if sharing.exists() else []
    config = transformers.AutoConfig.from_pretrained(path, revision=kwargs.get("revision"))
    model_class = getattr(transformers, config.architectures[0])
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # shared names are missing from the file by design
    model, info = model_class.from_pretrained(path, output_loading_info=True, **kwargs)
    transformers.logging.set_verbosity(verbosity)
    for first, *others in groups:
        for name in others:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, model.get_submodule(first))
    unexplained = set(info["missing_keys"]) - set(shared_keys(model))
    if unexplained or info["mismatched_keys"]:
        raise ValueError(
            f"checkpoint {path} lacks weights or holds others of another shape: "
            f"{sorted(unexplained) or sorted(map(str, info['mismatched_keys']))}"
        )
    return model.eval()


def size_on_disk(path: str | Path) -> int:
    """Bytes of the weight files in a model's folder."""
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
