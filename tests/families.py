"""Tiny random models, one of every architecture family, and batches that fit them."""

from functools import cache

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    OlmoConfig,
    OlmoForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from ffmerge.activations import collect_features
from ffmerge.alignment import align
from ffmerge.catalogue import list_methods
from ffmerge.methods import Evidence
from ffmerge.pairs import pair_name

LAYERS, VOCABULARY = 4, 40
TEXT = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
PLAIN = TEXT | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
}

KEYS = PLAIN | {"num_key_value_heads": 2}
T5 = TEXT | {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": LAYERS, "num_heads": 2}


def make_vit():
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=5,
        )
    )


def make_gpt2():
    return GPT2LMHeadModel(
        GPT2Config(**TEXT, n_embd=16, n_inner=24, n_layer=LAYERS, n_head=2, n_positions=32)
    )


def make_marian():
    return MarianMTModel(
        MarianConfig(
            **TEXT,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
            d_model=16,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=32,
        )
    )


def make_olmo():
    return OlmoForCausalLM(OlmoConfig(**PLAIN, tie_word_embeddings=False))


def make_llama():
    return LlamaForCausalLM(LlamaConfig(**PLAIN))


def make_bert():
    return BertForMaskedLM(BertConfig(**PLAIN))


MAKERS = {
    "vit": make_vit,
    "gpt2": make_gpt2,
    "marian": make_marian,
    "olmo": make_olmo,
    "llama": make_llama,
    "bert": make_bert,
}


FUSED = ("attention", "attention_ff")  # cannot share a part of GPT-2's one matrix


UNLIKE = ("gpt2", "llama", "marian")  # transposed matrices, gates without biases, two stacks


def list_cases(methods=None):
    """Every family with every method that it allows."""
    pairs = [(family, m) for m in methods or list_methods() for family in MAKERS]
    return [(family, m) for family, m in pairs if not (family == "gpt2" and m in FUSED)]


def spread_cases(families=MAKERS):
    """Cases, of which those that repeat what another family shows are for `make test-slow`."""
    cases = [case for case in list_cases() if case[0] in families]
    return [
        pytest.param(*case, marks=() if case[0] in UNLIKE else pytest.mark.slow) for case in cases
    ]


def make_model(family: str, seed: int = 0):
    """A random model of the family, with biases and scales that are not all 0 and 1."""
    torch.manual_seed(seed)
    model = MAKERS[family]()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def make(kind, auto=AutoModel, **settings):
    """A random model of any type, as `make_model` makes those of the families."""
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **settings))
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def make_batch(family: str, n: int = 6, length: int = 10, seed: int = 0, padded: bool = False):
    """Inputs of the family; with `padded`, the second half of the last examples is padding."""
    generator = torch.Generator().manual_seed(seed)
    if family == "vit":
        return {"pixel_values": torch.randn(n, 1, 8, 8, generator=generator)}
    ids = torch.randint(2, VOCABULARY, (n, length), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        mask[n // 2 :, length // 2 :] = 0
        ids = ids * mask
    batch = {"input_ids": ids, "attention_mask": mask}
    if family == "marian":
        labels = torch.randint(2, VOCABULARY, (n, length - 2), generator=generator)
        if padded:
            labels[n // 3 :, length // 3 :] = -100
        batch["labels"] = labels
    return batch


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def make_labelled(family: str, **options):
    """A batch that has a loss."""
    batch = make_batch(family, **options)
    if family == "vit":
        batch["labels"] = torch.arange(len(batch["pixel_values"])) % 5
    elif family != "marian":
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


@cache
def make_evidence(family: str, padding: int | None = None):
    """What methods learn of `make_model(family)`: all pairs aligned, and data to calibrate with.

    With `padding`, half of many examples is padding, and that is the token which stands there.
    """

    def calibrate():  # more than 50 tokens for each of 24 neurons
        for seed in range(6):
            batch = make_labelled(family, n=50, seed=seed, padded=padding is not None)
            if padding is not None:
                batch["input_ids"].masked_fill_(batch["attention_mask"] == 0, padding)
            yield batch

    features = collect_features(make_model(family), calibrate(), tokens=200)
    pairs = {
        pair_name(name, a, b): align(layers[a], layers[b])
        for name, layers in features.items()
        for a in range(LAYERS)
        for b in range(a + 1, LAYERS)
    }
    return Evidence(pairs, calibrate)
