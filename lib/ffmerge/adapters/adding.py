"""Adapters on shared sublayers: one for each layer, or one for each shared sublayer.

peft wraps a module once, under its first name: adapters given to a merged model by peft alone would
reach one layer of a group only, and are refused (`ffmerge.adapters.guarding`). So which is meant is
said, and written beside trained adapters.
"""

import copy
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from ffmerge.saving.sharing import find_shared_modules, share_modules

Per = Literal["layer", "sublayer"]

# in the place of the base's name, or peft would open them on one layer of each group, silently
MARK = "one adapter a {}: ffmerge.add_adapters(ffmerge.load(...), this folder, {!r})"
CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")  # inits that take from the weights


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


def add_adapters(model: PreTrainedModel, adapters, per: Per):
    """Put adapters into a model with shared sublayers, in place.

    Args:
        model: merged; its weights are frozen from now on.
        adapters: peft's settings of new ones, such as a LoraConfig, or the folder of trained ones.
        per: "layer": every layer of a group has its own; "sublayer": a group has one.

    Returns:
        A PeftModel, whose own save_pretrained saves the adapters alone.

    Raises:
        ValueError: another `per`, also than they were trained with; settings that `per` cannot
            mean; or a model in 8 bits for "layer".

    Invariant: new adapters change no output; folding them into shared weights raises.
    """
    from peft import PeftConfig, PeftModel, get_peft_model

    from ffmerge.adapters.guarding import CHOSEN  # with peft, which takes a second

    if per not in ("layer", "sublayer"):
        raise ValueError(f"per is {per!r}; valid are 'layer' and 'sublayer'")
    if per == "layer" and getattr(model, "is_loaded_in_8bit", False):
        raise ValueError("per is 'layer' and the model in 8 bits; valid are 'sublayer' and 4 bits")
    groups = find_shared_modules(model)
    if isinstance(adapters, str | Path):
        _check_trained(adapters, groups, per)
        adapt = PeftModel.from_pretrained
    elif isinstance(adapters, PeftConfig):
        _check_settings(adapters, groups, per)
        adapt = get_peft_model
    else:
        kind = type(adapters).__name__
        raise ValueError(f"adapters are a {kind}; valid are peft's settings, or a folder")
    if per == "layer":
        untie_adapters(model)
    chosen = CHOSEN.set(True)
    try:
        adapted = adapt(model, adapters)
    finally:
        CHOSEN.reset(chosen)
    wrapped = {name.partition(".base_layer.")[0] for name, _ in model.named_parameters()}
    if per == "sublayer":
        share_modules(model, groups)
    if wrapped & {name for group in groups for name in group}:
        for settings in adapted.peft_config.values():
            settings.base_model_name_or_path = f"{model.name_or_path} ({MARK.format(per, per)})"
    return adapted


def _check_settings(settings, groups: list[list[str]], per: Per) -> None:
    """Refuse new adapters that one module in several layers cannot have."""
    from peft.tuners.tuners_utils import check_target_module_exists

    init = str(getattr(settings, "init_lora_weights", ""))
    if groups and per == "layer" and init.startswith(CHANGING):
        raise ValueError(
            f"per is 'layer' and init_lora_weights is {init!r}, which takes from weights that "
            "layers share; valid are other ones, and per='sublayer'"
        )
    targets = getattr(settings, "target_modules", None)
    for group in groups if per == "sublayer" else ():
        parts = {part for name in group for part in name.split(".")}
        whole = parts & set(getattr(settings, "modules_to_save", None) or ())
        meant = [
            bool(targets not in (None, "all-linear") and check_target_module_exists(settings, name))
            for name in group
        ]
        if whole or len(set(meant)) > 1:
            raise ValueError(
                f"per is 'sublayer' and the adapters are for some of {', '.join(group)}, or train "
                "it whole; valid is all of them by target_modules, or per='layer'"
            )


def _check_trained(folder: str | Path, groups: list[list[str]], per: Per) -> None:
    """Refuse adapters that would leave some of their own, or some of a group's layers, out."""
    from peft import PeftConfig, load_peft_weights

    if isinstance(folder, Path) and not folder.is_dir():
        raise ValueError(f"adapters are {folder}, which is no folder; valid is one, or settings")
    keys = load_peft_weights(str(folder), device="cpu")
    told = str(PeftConfig.from_pretrained(folder).base_model_name_or_path)
    trained = next((way for way in ("layer", "sublayer") if MARK.format(way, way) in told), None)
    for group in groups:
        found = [name for name in group if any(f".{name}." in key for key in keys)]
        fits = per == trained if trained else per == "layer" and found == group  # of the base
        if found and not fits:
            raise ValueError(
                f"per is {per!r} and the adapters in {folder} are for {', '.join(found)} of "
                f"{', '.join(group)}; valid is how they were trained"
            )
