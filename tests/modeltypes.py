"""A model of every type of transformers, without weights, or the reason that there is none."""

import re
import warnings

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.voxtral_realtime.modeling_voxtral_realtime import VoxtralRealtimeTextModel

KINDS = sorted(CONFIG_MAPPING_NAMES)  # as transformers itself has them
PACKAGE = re.compile(r"requires the (\w+) library but it was not found")
MISSING = "needs {}, which is not installed"
INVALID = "no configuration of it is valid in this version"
PART = "no model of its own: a part of another type, or another name of one"

ROPE = {"rope_type": "default", "rope_theta": 1e4}
RESNET = {"backbone_config": {"model_type": "resnet", "out_features": ["stage3", "stage4"]}}
SWIN = {"backbone_config": {"model_type": "swin", "out_features": ["stage3", "stage4"]}}
DENSE_SPARSE = {"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"]}
MIXED = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
EXPERTS = {"top_k_experts": 2, "moe_intermediate_size": 704}
INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256}
INDEXER |= {"indexer_budget": 2048, "indexer_compress_ratio": 64}

# Settings that have no default, or one that no model is built from; detectors get a backbone of
# transformers' own in the place of timm's.
GIVEN = {
    "autoformer": {"prediction_length": 24},
    "aya_vision": {"vision_config": {"model_type": "siglip_vision_model"}},
    "chameleon": {"vocabulary_map": {"<image>": 8711}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": ROPE}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "conditional_detr": RESNET,
    "dab-detr": RESNET,
    "dbrx": {"attn_config": {"rope_theta": 1e4}},
    "deepseek_ocr2": {"text_config": DENSE_SPARSE},
    "deformable_detr": RESNET,
    "detr": RESNET,
    "diffusion_gemma": {"text_config": {"num_experts": 8} | EXPERTS},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2},
    "emu3": {"vocabulary_map": {"<image>": 8711}},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 1}},
    "granite4_vision": {"deepstack_layer_map": [[-2, 8]], "downsample_rate": "1/2"},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "hunyuan_vl_text": {"head_dim": 128},
    "informer": {"prediction_length": 24},
    "lfm2_moe": MIXED,
    "ministral": {"head_dim": 128},
    "moonshine_streaming": {"num_key_value_heads": 8},
    "nemotron": {"num_key_value_heads": 48},
    "omdet-turbo": SWIN,
    "pp_ocrv5_server_det": {"intraclass_block_number": 0, "kernel_list": [3, 2, 2]},
    "pp_ocrv6_medium_det": {"intraclass_block_number": 0},
    "qwen3_omni_moe": {
        "talker_config": {
            "spatial_merge_size": 2,
            "text_config": {"shared_expert_intermediate_size": 768},
        }
    },
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "table-transformer": RESNET,
    "time_series_transformer": {"prediction_length": 24},
    "vitmatte": {"fusion_hidden_sizes": [256, 128, 64, 32]},
}
# Models that no Auto class builds, or builds from another configuration.
CLASSES = {
    "esmfold2": transformers.EsmFold2Model,
    "musicgen": transformers.MusicgenForConditionalGeneration,
    "musicgen_melody": transformers.MusicgenMelodyForConditionalGeneration,
    "rag": transformers.RagModel,
    "voxtral_realtime_text": VoxtralRealtimeTextModel,
}
FAULTS = {"gemma4_assistant": "layer types producing a cache is different"}  # what it says of it


def build(kind: str) -> nn.Module | str:
    """A model of a type on the meta device, or the reason that there is none.

    From the defaults of its configuration, but for what is `GIVEN`; any other error is raised.
    """
    transformers.logging.set_verbosity_error()
    model_class = find_class(kind)
    if model_class is None:
        return PART
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            return model_class(CONFIG_MAPPING[kind](**GIVEN.get(kind, {})))
    except ImportError as error:
        package = PACKAGE.search(str(error))
        if package is None:
            raise
        return MISSING.format(package[1])
    except ValueError as error:
        if kind not in FAULTS or FAULTS[kind] not in str(error):
            raise
        return INVALID


def find_class(kind: str) -> type | None:
    """The class of a type's models: the first that `AutoModel` or another Auto class names."""
    names = [m[kind] for m in _list_mappings() if kind in m]
    if kind in CLASSES or not names:
        return CLASSES.get(kind)
    name = names[0] if isinstance(names[0], str) else names[0][0]
    return getattr(transformers, name)


def _list_mappings() -> list[dict]:
    """Of every Auto class, a type's name to that of its class; those of AutoModel come first."""
    first = modeling_auto.MODEL_MAPPING_NAMES
    pattern = re.compile(r"MODEL_\w+_MAPPING_NAMES")
    return [first, *(m for n, m in vars(modeling_auto).items() if pattern.fullmatch(n))]
