"""Fewer bits: what is tied must stay right, and what is frozen must stay frozen."""

import copy

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from families import MAKERS, VOCABULARY, logits, make_batch, make_model
from torch import nn
from transformers import OlmoConfig, OlmoForCausalLM

from ffmerge.checkpoints import find_shared_modules, save
from ffmerge.compression import merge
from ffmerge.patches import Plan, apply_plan
from ffmerge.sublayers import find_stacks
from study.quantization import (
    add_adapters,
    count_bytes,
    load_int8,
    load_nf4,
    save_adapters,
    untie_adapters,
)
from study.sections import Adapters

ADAPTERS = Adapters(rank=2, alpha=4, dropout=0.0)


def merge_some(model):
    return merge(model, dict.fromkeys(find_stacks(model), "1-3"), method="vanilla")


def untie(model):
    """The same function, with a copy of the shared sublayer in every place."""
    model = copy.deepcopy(model)
    for _, *names in find_shared_modules(model):
        for name in names:
            parent, _, child = name.rpartition(".")
            module = copy.deepcopy(model.get_submodule(name))
            setattr(model.get_submodule(parent), child, module)
    return model


@pytest.fixture(scope="module")
def olmo():
    return merge_some(make_wide())


def make_wide():
    """Blocks of 64 fit its rows."""
    torch.manual_seed(0)
    config = OlmoConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return OlmoForCausalLM(config).eval()


@pytest.mark.parametrize("family", [name for name in MAKERS if name not in ("bert", "llama")])
def test_int8_of_a_tied_model_is_int8_of_the_untied_one(family, tmp_path):
    small = merge_some(make_model(family))
    tied, apart = (
        load_int8(save(small, tmp_path / "a")),
        load_int8(save(untie(small), tmp_path / "b")),
    )
    batch = make_batch(family)
    assert torch.equal(logits(tied, batch), logits(apart, batch))
    exact = logits(small, batch)
    assert (logits(tied, batch) - exact).norm() < 0.2 * exact.norm()
    assert find_shared_modules(tied) and not find_shared_modules(apart)
    assert count_bytes(tied) < min(count_bytes(apart), count_bytes(small))


@pytest.mark.parametrize("family", ["vit", "gpt2", "marian"])
def test_bytes_in_8_bits_count_the_scales_before_and_after_a_forward(family, tmp_path):
    small = merge_some(make_model(family))
    tied = load_int8(save(small, tmp_path / "a"))
    before = count_bytes(tied)
    logits(tied, make_batch(family))
    linear = {m for m in tied.modules() if isinstance(m, Linear8bitLt)}
    inside = {p for m in linear for p in m.parameters()}
    rest = [t for t in (*tied.parameters(), *tied.buffers()) if t not in inside]
    expected = sum(m.in_features * m.out_features + 4 * m.out_features for m in linear)
    expected += sum(4 * m.out_features for m in linear if m.bias is not None)
    expected += sum(t.numel() * t.element_size() for t in rest)
    assert linear and before == count_bytes(tied) == expected


def test_parameters_shared_without_their_modules_are_garbage_under_int8(tmp_path):
    """Why modules are tied: the same experiment with the parameter alone goes wrong, silently."""
    small = merge_some(make_model("gpt2"))
    right = load_int8(save(small, tmp_path / "a"))
    wrong = load_int8(save(untie(small), tmp_path / "b"))
    sublayers = find_stacks(wrong)["decoder"].sublayers
    for projection in ("W_in", "W_out"):
        for i in (2, 3):
            sublayers[i].module(projection).weight = sublayers[1].module(projection).weight
    batch = make_batch("gpt2")
    exact = logits(right, batch)
    assert not torch.allclose(logits(wrong, batch), exact, atol=0.01 * float(exact.abs().max()))


def test_nf4_of_a_tied_model_is_nf4_of_the_untied_one(olmo, tmp_path):
    tied, apart = load_nf4(save(olmo, tmp_path / "a")), load_nf4(save(untie(olmo), tmp_path / "b"))
    batch = make_batch("olmo")
    assert torch.equal(logits(tied, batch), logits(apart, batch))
    assert count_bytes(tied) < count_bytes(apart) < count_bytes(olmo)


@pytest.mark.parametrize("family", [name for name in MAKERS if name not in ("bert", "llama")])
def test_nf4_takes_any_width_and_ties_what_was_tied(family, tmp_path):
    """Widths of 16, 24 and, pruned unevenly, others; GPT-2's Conv1D as well."""
    model = make_model(family)
    widths = {name: (24, 7, 7, 1) for name in find_stacks(model)}
    for small in (merge_some(model), apply_plan(model, Plan(neurons=widths))):
        tied = load_nf4(save(small, tmp_path / "a"), torch.float32)
        apart = load_nf4(save(untie(small), tmp_path / "b"), torch.float32)
        batch = make_batch(family)
        exact, found = logits(small, batch), logits(tied, batch)
        assert torch.equal(found, logits(apart, batch))
        assert 0 < (found - exact).norm() < 0.5 * exact.norm()
        assert len(find_shared_modules(tied)) == len(find_shared_modules(small))
        assert (count_bytes(tied) < count_bytes(apart)) == bool(find_shared_modules(small))


def test_bytes_in_4_bits_count_the_scales_and_their_scales(olmo, tmp_path):
    tied = load_nf4(save(olmo, tmp_path / "a"))
    linear = {m for m in tied.modules() if isinstance(m, Linear4bit)}
    sizes = [m.in_features * m.out_features for m in linear]
    expected = sum(n // 2 + n // 64 + 4 * -(-n // 64 // 256) for n in sizes)
    tables = {t.data_ptr(): t for m in linear for t in list_tables(m.weight.quant_state)}
    expected += sum(t.numel() * t.element_size() for t in tables.values())
    inside = {p for m in linear for p in m.parameters()}
    rest = [t for t in (*tied.parameters(), *tied.buffers()) if t not in inside]
    expected += sum(t.numel() * t.element_size() for t in rest)
    assert len(linear) == 4 * 4 + 2 * 3 and count_bytes(tied) == expected
    logits(tied, make_batch("olmo"))
    assert count_bytes(tied) == expected


def list_tables(state):
    """What the 16 and 256 codes of a weight stand for."""
    return state.code, state.state2.code


def test_new_adapters_change_nothing_and_every_layer_has_its_own(olmo, tmp_path):
    frozen = load_nf4(save(olmo, tmp_path / "frozen"))
    adapted = add_adapters(olmo, ADAPTERS, tmp_path / "scratch").eval()
    batch = make_batch("olmo")
    assert torch.equal(logits(frozen, batch), logits(adapted, batch))
    ups = [name for name, _ in adapted.named_parameters() if "up_proj.lora_A" in name]
    assert len(ups) == 4  # three layers share one sublayer, and yet have an adapter each
    assert not (tmp_path / "scratch").exists()


def test_untying_for_adapters_copies_no_weights(olmo, tmp_path):
    frozen = load_nf4(save(olmo, tmp_path / "frozen"))
    n, size = sum(p.numel() for p in frozen.parameters()), count_bytes(frozen)
    apart = untie_adapters(frozen)
    assert not find_shared_modules(apart)
    assert sum(p.numel() for p in apart.parameters()) == n and count_bytes(apart) == size


def test_training_adapters_leaves_the_merged_base_bit_for_bit(olmo, tmp_path):
    adapted = add_adapters(olmo, ADAPTERS, tmp_path / "scratch")
    frozen = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    batch = make_batch("olmo")
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        adapted.train()(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in adapted.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, frozen[name]), name
    again = add_adapters(olmo, save_adapters(adapted, tmp_path / "kept"), tmp_path / "scratch")
    assert torch.equal(logits(again.eval(), batch), logits(adapted.eval(), batch))
    fresh = add_adapters(olmo, ADAPTERS, tmp_path / "scratch").eval()
    assert not torch.allclose(logits(fresh, batch), logits(adapted, batch), atol=1e-3)


def test_adapters_learn_the_same_after_an_evaluation(olmo, tmp_path):
    """On some CPUs bitsandbytes repacks what it evaluates, and gradients stop there, silently."""
    batch, gradients = make_batch("olmo"), []
    for evaluated in (False, True):
        torch.manual_seed(0)
        adapted = add_adapters(olmo, ADAPTERS, tmp_path / "scratch")
        if evaluated:
            logits(adapted.eval(), batch)
        adapted.train()(**batch, labels=batch["input_ids"]).loss.backward()
        named = adapted.named_parameters()
        gradients.append({name: p.grad for name, p in named if "lora_B" in name})
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(gradient, gradients[1][name]), name


def test_adapters_learn_beside_any_width_as_beside_the_same_weights_in_full(tmp_path):
    """bitsandbytes' product has their gradient exactly, whether blocks of 64 fit a row or not."""
    batch, gradients = make_batch("olmo"), []
    small = apply_plan(make_wide(), Plan(neurons={"decoder": (100, 37, 1, 64)}))
    torch.manual_seed(0)
    adapted = add_adapters(small, ADAPTERS, tmp_path / "scratch", compute=torch.float32).train()
    for name, module in [*adapted.named_modules()]:
        module.p = 0.0  # no dropout
        if "lora_B" in name and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
    for in_full in (False, True):
        if in_full:
            for name, module in [*adapted.named_modules()]:
                if isinstance(module, Linear4bit):
                    adapted.set_submodule(name, write_out(module))
        adapted.zero_grad()
        adapted(**batch, labels=batch["input_ids"]).loss.backward()
        named = adapted.named_parameters()
        gradients.append({name: p.grad.clone() for name, p in named if "lora_" in name})
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name])


def write_out(module):
    """A layer in 4 bits as a usual one of the same values."""
    values = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    linear = nn.Linear(module.in_features, module.out_features, bias=False)
    linear.weight = nn.Parameter(values, requires_grad=False)
    return linear
