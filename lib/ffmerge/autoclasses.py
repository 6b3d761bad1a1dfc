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

from ffmerge.sharing import build_structure, resolve_names
from ffmerge.sublayers import find_stacks
from ffmerge.wrapping import FFMergeConfig, plain_class


class SharedModel:
    """Mixed into the base's class while a model is loaded: shared modules from the beginning."""

    def __init__(self, config, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        build_structure(self, config.ffmerge["groups"], config.ffmerge["neurons"])
        if config.ffmerge["plan"]:
            self.ffmerge_plan = config.ffmerge["plan"]

    def set_submodule(self, target: str, module: nn.Module, strict: bool = False) -> None:
        """What takes the place of a shared module (as in 8 bits) does so under all its names."""
        names = [target]
        for first, *others in resolve_names(self, self.config.ffmerge["groups"], checked=False):
            if target in others:
                return  # came with the first one
            names += others if target == first else []
        for name in names:
            super().set_submodule(name, module, strict)

    @classmethod
    def from_pretrained(cls, path, *args, output_loading_info: bool = False, **kwargs):
        """As transformers' own.

        Raises:
            ValueError: weights are missing, left over, of another shape or damaged.
        """
        plain = cls.__mro__[2]
        kwargs |= {"use_safetensors": True}
        model, info = load_checked(super().from_pretrained, plain, path, *args, **kwargs)
        for first, *others in resolve_names(model, model.config.ffmerge["groups"], checked=False):
            if any(model.get_submodule(name) is not model.get_submodule(first) for name in others):
                raise ValueError(
                    f"{first} in {path} did not stay shared; valid are quantizers that replace "
                    "modules through set_submodule, as bitsandbytes does"
                )
        model.__class__ = plain
        return (model, info) if output_loading_info else model


@cache
def share_model_class(plain: type) -> type:
    """A class that builds the base's model with the sharing that its configuration tells."""
    # transformers renames the weights of its own modules' classes only
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (SharedModel, plain), names)


def load_checked(
    from_pretrained, plain: type, path, *args, exact: bool = True, **kwargs
) -> tuple[PreTrainedModel, dict]:
    """Load a model, and refuse it unless the file holds exactly its weights.

    Args:
        from_pretrained: transformers' own.
        plain: the class that is loaded; where another one was saved, heads may differ.
        path, args, kwargs: of `from_pretrained`.
        exact: whether weights that are left over are refused too.

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
    for kind in ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if exact else [])):
        names = sorted(key if isinstance(key, str) else key[0] for key in info[kind])
        if not is_same or (may_differ and kind == "mismatched_keys"):  # another head
            inside = tuple(f"{stack.path}." for stack in find_stacks(model).values())
            names = [name for name in names if name.startswith(inside)]
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
            model = found._from_config(config.shared, **kwargs)
            model.__class__ = found.__mro__[2]
            return model

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
