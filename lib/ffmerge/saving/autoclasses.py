"""transformers' own loaders for folders of models with shared sublayers.

`AutoModelFor….from_pretrained(folder)` builds the base's class with its modules shared before any
weight is read, and gives it only if the file holds exactly its weights.
"""

from collections.abc import Sequence
from functools import cache

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from ffmerge.saving.sharing import build_structure, is_guard, resolve_names, share_modules
from ffmerge.saving.wrapping import FFMergeConfig, list_ways, plain_class


class SharedModel:
    """Mixed into the base's class while a model is loaded: shared modules from the beginning."""

    def __init__(self, config, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        build_structure(self, config.ffmerge["groups"], config.ffmerge["neurons"])

    @classmethod
    def from_pretrained(cls, path, *args, output_loading_info: bool = False, **kwargs):
        """As transformers' own.

        Raises:
            ValueError: weights are missing, left over, of another shape or damaged.
        """
        plain = cls.__mro__[2]
        kwargs |= {"use_safetensors": True}
        model, info = load_checked(super().from_pretrained, plain, path, *args, **kwargs)
        return (_finish(model, plain), info) if output_loading_info else _finish(model, plain)


@cache
def share_model_class(plain: type) -> type:
    """A class that builds the base's model with the sharing that its configuration tells."""
    # transformers renames the weights of its own modules' classes only
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (SharedModel, plain), names)


def _finish(model: PreTrainedModel, plain: type) -> PreTrainedModel:
    """Share what was loaded once; from now on the model is of the base's own class."""
    told, places = model.config.ffmerge, getattr(model, "hf_device_map", {})
    for group in resolve_names(model, told["groups"]):
        devices = {_find_place(name, places) for name in group} - {"cpu", "disk"}
        if len(devices) > 1:
            raise ValueError(
                f"device_map puts {', '.join(group)}, which are one module, on {sorted(devices)}; "
                "valid is one device for the layers that share"
            )
    share_modules(model, told["groups"])
    if told["plan"]:
        model.ffmerge_plan = told["plan"]
    model.__class__ = plain
    return model


def _find_place(name: str, places: dict) -> object:
    inside = [path for path in places if not path or f"{name}.".startswith(f"{path}.")]
    return places[max(inside, key=len)] if inside else "cpu"


def load_checked(
    from_pretrained, plain: type, path, *args, exact: bool = True, **kwargs
) -> tuple[PreTrainedModel, dict]:
    """Load a model, and refuse it unless the file holds exactly its weights.

    Args:
        from_pretrained: transformers' own.
        plain: the class that is loaded; where another one was saved, heads may differ.
        path, args, kwargs: of `from_pretrained`.
        exact: whether any weights that are left over are refused, not only those of further layers.

    Raises:
        ValueError: in one sentence, what does not fit.
    """
    may_differ = kwargs.pop("ignore_mismatched_sizes", False)
    try:
        model, info = from_pretrained(
            path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    except SafetensorError as error:
        raise ValueError(
            f"weights in {path} are damaged ({error}); valid is the file as it was saved"
        ) from error
    is_same = plain.__name__ in (model.config.architectures or ())
    lists = {f"{p}.": len(m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(key if isinstance(key, str) else key[0] for key in info[kind])
        if kind == "missing_keys":  # a folder that was written before there were guards
            names = [name for name in names if not is_guard(model.config, name)]
        if kind == "unexpected_keys" and not exact:  # others' may hold more, but no further layer
            ends = [f"{way}{n}." for path, n in lists.items() for way in list_ways(model, path)]
            names = [name for name in names if name.startswith(tuple(ends))]
        elif not is_same or (may_differ and kind == "mismatched_keys"):  # another head
            # layers are the same under any head
            names = [name for name in names if name.startswith(tuple(lists))]
        if names:
            raise ValueError(
                f"checkpoint {path} lacks weights or holds others: {kind.removesuffix('_keys')} is "
                f"{names[0]} (of {len(names)} such); valid is what was saved"
            )
    return model, info


def register() -> None:
    """Make every Auto class of transformers load a folder of the type "ffmerge"."""
    for auto in vars(modeling_auto).values():
        if (
            isinstance(auto, type)
            and issubclass(auto, _BaseAutoModelClass)
            and auto._model_mapping is not None
        ):
            auto.register(FFMergeConfig, _make_loader(auto), exist_ok=True)


def _make_loader(auto: type) -> type:
    class Loader:
        """Stands for all models with shared sublayers in one Auto class."""

        config_class = FFMergeConfig

        @classmethod
        def from_pretrained(cls, path, *args, config: FFMergeConfig, **kwargs):
            found = _find_class(auto, config)
            return found.from_pretrained(path, *args, config=config.shared, **kwargs)

        @classmethod
        def _from_config(cls, config: FFMergeConfig, **kwargs):
            found = _find_class(auto, config)
            return _finish(found._from_config(config.shared, **kwargs), found.__mro__[2])

    return Loader


def _find_class(auto: type, config: FFMergeConfig) -> type:
    plain = plain_class(config.shared)
    if plain not in auto._model_mapping:
        raise ValueError(
            f"{auto.__name__} has no {plain.model_type}; valid are its other Auto classes"
        )
    found = auto._model_mapping[plain]
    if isinstance(found, Sequence):
        by_name = {kind.__name__: kind for kind in found}
        saved = (name for name in config.shared.architectures or () if name in by_name)
        found = by_name[next(saved, found[0].__name__)]
    return share_model_class(found)


register()
