"""Fewer bits: LLM.int8() and NF4 for evaluation, NF4 with adapters for QLoRA; by bitsandbytes.

Tied sublayers must be tied as modules under int8: `Linear8bitLt` keeps its integers in the module,
so two modules that share only the parameter compute garbage without an error. In 4 bits sharing
the parameter is sound, which gives every layer of a tied window its own adapter.

bitsandbytes and peft take seconds to import, so only what needs them does.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from ffmerge.adapters.adding import untie_adapters
from ffmerge.checkpoints import load, save
from ffmerge.files import remove, replacing
from study.hardware import find_device
from study.sections import Adapters

if TYPE_CHECKING:
    from peft import PeftModel

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # says at each layer that it casts


def load_int8(path: Path, **kwargs) -> PreTrainedModel:
    """Load a saved model under LLM.int8() (Section 5.4): linear layers in 8 bits, still tied.

    Args:
        path: a folder that `save` wrote.
        kwargs: passed on to `from_pretrained`.

    Invariant: a tied model gives the same logits as the same model untied.
    """
    settings = BitsAndBytesConfig(load_in_8bit=True)
    return load(path, quantization_config=settings, device_map=_find_place(), **kwargs)


def load_nf4(
    path: Path,
    compute: torch.dtype = torch.bfloat16,
    storage: torch.dtype = torch.uint8,
    **kwargs,
) -> PreTrainedModel:
    """Load a saved model in 4-bit NormalFloat with double quantization (Section 5.5), still tied.

    Weights are cut into blocks of 64 through all rows: any width will do, as pruning leaves them,
    for gradients too.

    Args:
        path, kwargs: as in `load_int8`.
        compute: the dtype that products are computed in (Table 8 says float16).
        storage: the dtype that the bits are kept as; processes that share weights out (FSDP) want
            that of the other weights.

    Invariant: a tied model gives the same logits as the same model untied; and gradients reach
    what lies before a layer, also after the model was evaluated.
    """
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=storage,
    )
    model = load(path, quantization_config=settings, device_map=_find_place(), **kwargs)
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On CPUs with AVX512-BF16, evaluation would repack the weights for a product that has
            # no gradient: training after a first evaluation would go on, silently, without them.
            module.support_avx512bf16_for_cpu = False
    return model


def add_adapters(
    model: PreTrainedModel, adapters: Adapters | Path, scratch: Path, **kwargs
) -> "PeftModel":
    """Freeze a model in 4 bits and put an adapter beside every linear layer (QLoRA).

    Args:
        model: merged, pruned or untouched; left as it is.
        adapters: settings of new adapters, or the folder of trained ones.
        scratch: a folder for the model's weights on their way into 4 bits; removed again.
        kwargs: passed on to `from_pretrained`.

    Returns:
        The model with its adapters, the only weights that train.

    Invariant: new adapters change no output.
    """
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

    frozen = untie_adapters(load_nf4(save(model, scratch), **kwargs))
    remove(scratch)
    frozen = prepare_model_for_kbit_training(frozen, use_gradient_checkpointing=False)
    if isinstance(adapters, Path):
        return PeftModel.from_pretrained(frozen, adapters)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules="all-linear",
    )
    return get_peft_model(frozen, settings)


def save_adapters(model: "PeftModel", path: Path) -> Path:
    """Save trained adapters, without the frozen model; all of them, or nothing.

    Args:
        model: what `add_adapters` made.
        path: a folder; replaced if it exists.
    """
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = None  # a scratch folder that is gone
    with replacing(path) as partial:
        model.save_pretrained(partial)
    return path


def count_bytes(model: nn.Module) -> int:
    """Bytes of a model in memory, whatever its precision, shared weights once.

    Counts what quantization keeps beside the integers too: scales, and in 4 bits their own scales.

    Invariant: the same before and after a forward pass.
    """
    tensors: dict[int, torch.Tensor] = {}
    for module in model.modules():
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if type(module).__name__ == "Linear8bitLt" and hasattr(
            module, "state"
        ):  # after a first forward its scales are kept here
            held.append(module.state)
        for tensor in held:
            state = getattr(tensor, "quant_state", None)
            extra = [getattr(tensor, name, None) for name in ("CB", "SCB")]
            if state is not None:
                extra += [state.absmax, state.code]
                extra += [state.state2.absmax, state.state2.code] if state.nested else []
            for part in (tensor, *extra):
                if isinstance(part, torch.Tensor):
                    tensors.setdefault(part.data_ptr(), part)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _find_place() -> dict[str, str | int]:
    """Where low-bit weights go: this process's GPU, or the CPU; bitsandbytes knows no Apple's."""
    return {"": torch.cuda.current_device() if find_device() == "cuda" else "cpu"}
