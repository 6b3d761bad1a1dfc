"""Save and load models with shared sublayers: one copy on disk, still shared when loaded.

A folder of a model with shared sublayers is of a type of its own (`wrapping`), which transformers'
Auto classes load after `import ffmerge` (`autoclasses`) and nothing else does. Beside the usual
files lies `sharing.json`: which module names are one object, and of which weights.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from ffmerge.files import filling, read_json, restore, write_json
from ffmerge.saving.autoclasses import load_checked, share_model_class
from ffmerge.saving.card import write_card
from ffmerge.saving.folders import CONFIG, OWN, SHARING, check_folder, check_replaced, size_on_disk
from ffmerge.saving.saveable import check_saveable
from ffmerge.saving.sharing import find_shared_modules, remember, shared_keys
from ffmerge.saving.wrapping import FFMergeConfig, describe_config
from ffmerge.sublayers import unwrap

__all__ = ["find_shared_modules", "load", "save", "shared_keys", "size_on_disk"]

HUB = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
OF_LOADING = ("dtype", "torch_dtype", "quantization_config")  # no values of a configuration


def save(
    model: PreTrainedModel,
    path: str | Path,
    processor=None,
    *,
    method: str = "",
    base: str = "",
    measured: Mapping[str, object] | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Save a model with every shared sublayer once; all of it, or nothing.

    Args:
        model: merged, pruned or not; compiled or not.
        path: a new or empty folder, or one that `save` has written, whose files are replaced; if
            no processor is given, files of one may be there and stay.
        processor: a tokenizer or a processor, saved beside the model.
        method, base: for the model card: how it was made, and of what (its own name if left out).
        measured: numbers for the card, `{"validation loss": 3.14}`.
        max_shard_size: a file gets no larger than this.

    Returns:
        The folder.

    Raises:
        ValueError: a path through `..` or to a link, a folder that holds something else, or a model
            whose weights are not its own (adapters, 8 bits, on disk).

    Invariant: `load(save(model, path))` gives bitwise equal logits, still shared (of weights in one
    dtype: transformers reads all in one); an untouched model becomes a plain folder without a card.
    """
    path, model = Path(path), unwrap(model)
    if processor is not None and not hasattr(processor, "save_pretrained"):
        raise ValueError(f"processor is {processor!r}; valid is a tokenizer or a processor itself")
    check_saveable(model)
    check_folder(path, processor is not None)
    base = base or _find_name(model)
    remember(model)
    record = getattr(model.config, "ffmerge", {"groups": [], "neurons": {}})
    told = _tell(record | {"plan": getattr(model, "ffmerge_plan", {})})
    is_plain = told == {"groups": []}
    with filling(path, OWN, CONFIG) as partial:
        model.save_pretrained(partial, max_shard_size=max_shard_size)
        if processor is not None:
            processor.save_pretrained(partial)
            check_replaced(path, partial)
        content = [] if is_plain else told | {"digest": _digest(told, _list_names(partial))}
        write_json(content, partial / SHARING)
        if not is_plain or method or measured:
            write_card(model, partial, path.resolve().name, base, method, measured or {})
    return path


def load(path: str | Path, **kwargs) -> PreTrainedModel:
    """Load a model that `save` wrote, or any transformers checkpoint, its sublayers still shared.

    Args:
        path: the folder (a Path), or a hub name (a string).
        kwargs: passed on to `from_pretrained`, such as dtype or quantization_config. Code that
            comes with a checkpoint is never run.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: a local folder that is not there, or has no model in it.
        ValueError: the file lacks weights that no sharing explains, or something was altered.
    """
    folder, own = Path(path), {"config", "output_loading_info"} & set(kwargs)
    if own:
        raise ValueError(f"{min(own)} is given; valid is what from_pretrained takes beside it")
    if (isinstance(path, Path) or folder.is_absolute() or path[:1] in ".~") and not folder.exists():
        raise FileNotFoundError(f"no model in {path}; valid is a folder that `save` wrote")
    if folder.is_dir():
        restore(folder)
    told = _read_sharing(folder / kwargs.get("subfolder", ""))
    kwargs |= {"trust_remote_code": False}
    hub = {key: kwargs[key] for key in HUB if key in kwargs}
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False, **hub)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and "Unrecognized model" not in reason:
            raise
        valid = "valid are a hub id and the folder of a transformers model"
        raise FileNotFoundError(f"no model in {str(path)!r}: {reason[:300]}; {valid}") from error
    except KeyError as error:
        raise ValueError(
            f"{CONFIG} of {path} was altered ({error}); valid is what was saved"
        ) from error
    is_shared = isinstance(config, FFMergeConfig)
    if is_shared and told is not None and told != _tell(config.shared.ffmerge):
        raise ValueError(
            f"{folder / SHARING} was altered; valid is the file that was saved with the weights"
        )
    told = config.shared.ffmerge if is_shared else told
    model_class = _find_class((config.shared if is_shared else config).architectures, path)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what does not fit is said in one sentence, below
    try:
        if told and (told["groups"] or told.get("neurons")):
            config, kwargs = _configure(path, told, kwargs)
            model = share_model_class(model_class).from_pretrained(path, config=config, **kwargs)
        else:
            model, _ = load_checked(
                model_class.from_pretrained, model_class, path, exact=told is not None, **kwargs
            )
    finally:
        transformers.logging.set_verbosity(verbosity)
    if told and told.get("plan"):
        remember(model, told["plan"])
    return model.eval()


def _configure(path: str | Path, told: dict, kwargs: dict) -> tuple:
    """The configuration of a model with shared sublayers, and the kwargs that are not for it."""
    of_loading = {
        key: kwargs.pop(key) for key in (*OF_LOADING, "trust_remote_code") if key in kwargs
    }
    hub = {key: kwargs[key] for key in HUB if key in kwargs}
    config, rest = transformers.AutoConfig.from_pretrained(
        path, return_unused_kwargs=True, trust_remote_code=False, **kwargs
    )
    config = getattr(config, "shared", config)
    describe_config(config, told["groups"], told.get("neurons", {}), told.get("plan", {}))
    return config, rest | of_loading | hub


def _find_class(architectures: list[str] | None, path: str | Path) -> type:
    (name,) = (architectures or [""])[:1]
    found = getattr(transformers, name, None) if name else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(
            f"{CONFIG} of {path} names the architecture {name!r}; valid is a model of transformers"
        )
    return found


def _find_name(model: nn.Module) -> str:
    """The name of the model that it was loaded from; of a local folder only the last part."""
    name = getattr(model, "name_or_path", "") or ""
    return Path(name).name if Path(name).is_absolute() else name


def _read_sharing(folder: Path) -> dict | None:
    """What `save` wrote about sharing, widths and the plan; None in others' checkpoints.

    Raises:
        ValueError: the file is not what `save` wrote beside these weights.
    """
    file = folder / SHARING
    if not file.exists():
        return None
    names = _list_names(folder)
    try:
        content = read_json(file)
        if content == []:
            return {"groups": []}
        intact = content.pop("digest") == _digest(content, names)
        intact &= {"groups"} <= set(content) <= {"groups", "neurons", "plan"}
    except (ValueError, TypeError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise ValueError(f"{file} was altered; valid is the file that was saved with the weights")
    return content


def _tell(record: dict) -> dict:
    """Groups, uneven widths and the plan; what is empty is left out, but the groups."""
    return {key: value for key, value in record.items() if value or key == "groups"}


def _list_names(folder: Path) -> list[str]:
    """The names in the weight files of a folder.

    Raises:
        ValueError: one of them is damaged, or not there.
    """
    index, names = folder / "model.safetensors.index.json", []
    try:
        listed = set(read_json(index)["weight_map"].values()) if index.exists() else set()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} is damaged; valid is the file as saved") from error
    if lacking := sorted(name for name in listed if not (folder / name).exists()):
        raise ValueError(f"{folder} lacks {lacking[0]}; valid are all files as saved")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                names += opened.keys()
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); valid is the file as saved") from error
    return sorted(names)


def _digest(content: dict, names: list[str]) -> str:
    """Tells what is shared and the weights that it belongs to."""
    told = [content["groups"]]
    told += [content[key] for key in ("neurons", "plan") if content.get(key)]
    return hashlib.sha256(json.dumps([*told, names]).encode()).hexdigest()
