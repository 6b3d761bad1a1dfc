"""Adapters on shared sublayers: one for each layer, or one for each shared sublayer.

peft wraps a module once, under its first name: adapters given to a merged model by peft alone
reach one layer of a group only. So which is meant is said. `ffmerge.saving.folding` keeps any of
them from being folded in.
"""

import copy
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from ffmerge.saving.sharing import find_shared_modules, share_modules

BY_LAYER = "one adapter a layer: ffmerge.add_adapters(ffmerge.load(...), this folder, 'layer')"


def untie_adapters(model: nn.Module) -> nn.Module:
    """Give every layer of a group a module of its own around the same, frozen parameters.

    In place; only the shells are copied, not the weights. Not for 8 bits, where two modules that
    share a parameter compute garbage.

    Invariant: the number of parameters does not change.
    """
    for _, *names in find_shared_modules(model):
        for name in names:
            shell = copy.copy(model.get_submodule(name))
            shell._parameters = dict(shell._parameters)
            model.set_submodule(name, shell, strict=True)
    return model


def add_adapters(model: PreTrainedModel, adapters, per: Literal["layer", "sublayer"]):
    """Put adapters into a model with shared sublayers, in place.

    Args:
        model: merged; its weights are frozen from now on.
        adapters: peft's settings of new ones, such as a LoraConfig, or the folder of trained ones.
        per: "layer": every layer of a group has its own; "sublayer": a group has one.

    Returns:
        A PeftModel, whose own save_pretrained saves the adapters alone.

    Raises:
        ValueError: another `per` than they were trained with, or a model in 8 bits for "layer".

    Invariant: new adapters change no output; folding them into shared weights raises.
    """
    from peft import PeftModel, get_peft_model

    if per not in ("layer", "sublayer"):
        raise ValueError(f"per is {per!r}; valid are 'layer' and 'sublayer'")
    if per == "layer" and getattr(model, "is_loaded_in_8bit", False):
        raise ValueError("per is 'layer' and the model in 8 bits; valid are 'sublayer' and 4 bits")
    groups = find_shared_modules(model)
    is_trained = isinstance(adapters, str | Path)
    if is_trained:
        _check_trained(adapters, groups, per)
    if per == "layer":
        untie_adapters(model)
    adapt = PeftModel.from_pretrained if is_trained else get_peft_model
    adapted = adapt(model, adapters)
    if per == "sublayer":
        share_modules(model, groups)
    if groups and per == "layer":  # or peft would open them on one layer of each group, silently
        for settings in adapted.peft_config.values():
            settings.base_model_name_or_path = f"{model.name_or_path} ({BY_LAYER})"
    return adapted


def _check_trained(folder: str | Path, groups: list[list[str]], per: str) -> None:
    """Refuse adapters that would leave some of their own, or some of a group's layers, out."""
    from peft import PeftConfig, load_peft_weights

    keys = load_peft_weights(str(folder), device="cpu")
    is_told = BY_LAYER in str(PeftConfig.from_pretrained(folder).base_model_name_or_path)
    for group in groups:
        found = [name for name in group if any(f".{name}." in key for key in keys)]
        whole = list(group) if per == "layer" else [group[0]]
        if found not in ([], whole) and not (per == "layer" and is_told):
            raise ValueError(
                f"per is {per!r} and the adapters in {folder} are for {', '.join(found)} of "
                f"{', '.join(group)}; valid is how they were trained"
            )
