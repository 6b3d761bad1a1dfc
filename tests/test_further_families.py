"""Families that differ in kind from the six of every other test: the essential claims, for each."""

import pytest
import torch
import transformers
from families import KEYS, LAYERS, PLAIN, T5, TEXT, VOCABULARY, logits, make, make_batch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

import ffmerge
from ffmerge.checkpoints import shared_keys
from ffmerge.patches import Plan, apply_plan
from ffmerge.weights import permute

PAIRED = {"encoder_layers": LAYERS, "decoder_layers": LAYERS, "d_model": 16}
PAIRED |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 0}
PAIRED |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
KEPT = 7  # neurons of a pruned sublayer
HEADS = KEYS | {"head_dim": 8}
FAMILIES = {
    "t5": (AutoModelForSeq2SeqLM, T5 | {"decoder_start_token_id": 0}),  # ReLU, no biases
    "mt5": (AutoModelForSeq2SeqLM, T5 | {"decoder_start_token_id": 0}),  # gated, no biases
    "whisper": (  # reads sounds
        transformers.AutoModelForSpeechSeq2Seq,
        TEXT | PAIRED | {"num_mel_bins": 8, "max_source_positions": 5, "max_target_positions": 16},
    ),
    "gemma2": (AutoModelForCausalLM, HEADS),  # a norm after the FF too
    "qwen3": (AutoModelForCausalLM, HEADS),  # norms inside attention
    "phi3": (AutoModelForCausalLM, KEYS),  # W_gate and W_in in one matrix
    "modernbert": (AutoModelForMaskedLM, PLAIN | {"cls_token_id": 1, "sep_token_id": 1}),  # too
}


def make_inputs(kind, seed=0):
    if kind != "whisper":
        return make_batch("marian" if "t5" in kind else "gpt2", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    sounds = torch.randn(6, 8, 10, generator=generator)
    return {
        "input_features": sounds,
        "labels": torch.randint(2, VOCABULARY, (6, 8), generator=generator),
    }


def count_narrowed(stack):
    """Weights and biases of the neurons that go where all sublayers of a stack keep `KEPT`."""
    ff = stack.sublayers[0]
    weights = ff.read()
    n_biases = sum(b is not None for b in (weights.b_in, weights.b_gate))
    return LAYERS * (24 - KEPT) * (16 * len(ff.names) + n_biases)


@pytest.mark.parametrize("kind", FAMILIES)
def test_it_is_permuted_merged_pruned_saved_and_opened_by_any_tool(kind, tmp_path):
    auto, settings = FAMILIES[kind]
    model, batch = make(kind, auto, **settings), make_inputs(kind)
    stacks, before = ffmerge.find_stacks(model), logits(model, batch)
    assert [len(stack) for stack in stacks.values()] == [LAYERS] * len(stacks)

    features = ffmerge.collect_features(model, [batch], tokens=30)
    tied = ffmerge.merge(model, dict.fromkeys(stacks, "1-2"), features)
    for stack in ffmerge.find_stacks(tied).values():
        first, second, other = ([*map(id, ff.modules())] for ff in stack.sublayers[1:])
        assert first == second and not {*second} & {*other}  # the same modules
    gone = sum(stack.sublayers[1].n_parameters for stack in stacks.values())
    assert ffmerge.count_parameters(tied) == ffmerge.count_parameters(model) - gone

    narrow = apply_plan(model, Plan(neurons={name: (KEPT,) * LAYERS for name in stacks}))
    gone = sum(map(count_narrowed, stacks.values()))
    assert ffmerge.count_parameters(narrow) == ffmerge.count_parameters(model) - gone

    for small in (tied, narrow):
        again = auto.from_pretrained(ffmerge.save(small, tmp_path / "small"))
        assert shared_keys(again) == shared_keys(small)
        assert torch.equal(logits(again, batch), logits(small, batch))

    for ff in (ff for stack in stacks.values() for ff in stack.sublayers):
        ff.write(permute(ff.read(), torch.randperm(ff.d_ff)))
    assert (logits(model, batch) - before).norm() <= 1e-5 * before.norm()
