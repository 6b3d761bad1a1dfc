"""Whether the weights of a model are its own, whole and at hand; else they cannot be saved."""

import re

import torch
from torch import nn
from transformers import PreTrainedModel

from ffmerge.saving.sharing import shared_keys

COMPUTED = re.compile(r"\.parametrizations\.|_(orig|g|v)$")  # as torch names what it computes from


def check_saveable(model: nn.Module) -> None:
    """Check that a model can be saved so that it loads as it is.

    Raises:
        ValueError: it has adapters, is in 8 or 4 bits, lies on disk, shares weights that are
            computed from others, or modules share parameters without being one module.
    """
    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        told = ", with adapters that its own save_pretrained saves" * hasattr(model, "peft_config")
        raise ValueError(f"model is a {kind}{told}; valid is a model of transformers")
    names = " ".join(name for name, _ in model.named_parameters())
    found = {
        "has adapters in it; valid is the model without them, and peft's own save_pretrained for "
        "the adapters": ".base_layer." in names or ".lora_" in names,
        "is quantized; valid is the model before, which load(folder, quantization_config=…) "
        "quantizes again": getattr(model, "hf_quantizer", None) is not None,
        "has weights on disk; valid is a model loaded into memory": "meta"
        in {p.device.type for p in model.parameters()},
        "is of a class that its configuration would not bring back; valid is a class of "
        "transformers, or one with a configuration of its own": _is_unknown(model),
        "has compiled parts; valid is a model compiled as a whole": "_orig_mod" in names,
        "computes weights that layers share from others, by a mask or a norm; valid are plain "
        "ones": any(map(COMPUTED.search, shared_keys(model))),
    }
    for told, is_so in found.items():
        if is_so:
            raise ValueError(f"model {kind} {told}")
    _check_parameters(model)


def _is_unknown(model: PreTrainedModel) -> bool:
    """Whether a class is somebody's own, and its configuration another class's of transformers."""
    theirs = [type(part).__module__.startswith("transformers.") for part in (model, model.config)]
    return theirs == [False, True] and not getattr(model.config, "auto_map", None)


def _check_parameters(model: nn.Module) -> None:
    """Refuse one parameter in two modules: in 8 bits it is garbage, and folding changes both."""
    known = {*shared_keys(model), *(getattr(model, "all_tied_weights_keys", None) or ())}
    first: dict[torch.Tensor, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in known:
            continue
        if parameter in first:
            raise ValueError(
                f"{first[parameter]} and {name} are one parameter in two modules, as layers with "
                "adapters of their own have it; valid is one module, as merge makes it"
            )
        first[parameter] = name
