"""Adapters on shared sublayers: which layers they reach is said, and they are not folded."""

import pytest
import torch
from families import logits, make_batch, make_model
from peft import (
    AutoPeftModelForCausalLM,
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from torch import nn

from ffmerge.adapters.adding import add_adapters, untie_adapters
from ffmerge.checkpoints import find_shared_modules, load, save
from ffmerge.compression import merge
from ffmerge.patches import count_parameters
from ffmerge.saving.exporting import untie

FF, ATTENTION = ["up_proj", "gate_proj", "down_proj"], ["q_proj", "v_proj"]
BATCH = make_batch("llama")


@pytest.fixture
def small():
    return merge(make_model("llama"), {"decoder": "1-3"}, method="vanilla")


def settings(targets):
    return LoraConfig(target_modules=targets, r=2, lora_alpha=4, task_type="CAUSAL_LM")


def shake(adapted):
    """Adapters that do something; returns what the model then computes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return logits(adapted.eval(), BATCH)


@pytest.mark.parametrize(("per", "n"), [("layer", 4), ("sublayer", 2)])
def test_every_layer_is_reached_by_as_many_adapters_as_were_asked_for(per, n, small, tmp_path):
    folder, before = save(small, tmp_path / "small"), logits(small, BATCH)
    held = count_parameters(small)
    adapted = add_adapters(small, settings(FF), per)
    assert torch.equal(logits(adapted.eval(), BATCH), before)
    layers = adapted.base_model.model.model.layers
    assert all(hasattr(layer.mlp.up_proj, "lora_A") for layer in layers)
    assert len({id(layer.mlp.up_proj.lora_A["default"].weight) for layer in layers}) == n
    added = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    assert count_parameters(adapted) == held + added  # the frozen weights are still held once
    after = shake(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    again = add_adapters(load(folder), tmp_path / "adapter", per)
    assert torch.equal(logits(again.eval(), BATCH), after) and not torch.equal(after, before)


@pytest.mark.parametrize("per", ["layer", "sublayer"])
def test_folding_into_shared_weights_is_refused_with_the_reason(per, small):
    adapted = add_adapters(small, settings(FF), per)
    after = shake(adapted)
    for fold in (
        adapted.merge_and_unload,
        adapted.base_model.merge_and_unload,
        adapted.merge_adapter,
    ):
        with pytest.raises(ValueError, match="what is added for one is added for all; valid is"):
            fold()
    assert torch.equal(logits(adapted, BATCH), after)


def test_adapters_that_peft_alone_gives_to_shared_parameters_are_not_folded(small):
    adapted = get_peft_model(untie_adapters(small), settings(FF))
    held = {id(m) for name, m in adapted.named_modules() if name.endswith("up_proj.lora_A")}
    assert len(held) == 4  # each layer has its own
    after = shake(adapted)
    for fold in (adapted.merge_and_unload, adapted.merge_adapter):
        with pytest.raises(ValueError, match=r"what is added for one is added for all; .*\(here "):
            fold()
    assert torch.equal(logits(adapted, BATCH), after)
    for layer in adapted.modules():  # what would come out, around all checks
        if hasattr(layer, "lora_A"):
            layer.merge()
    assert not torch.allclose(logits(adapted, BATCH), after, atol=1e-3)


@pytest.mark.parametrize("per", ["layer", "sublayer"])
def test_adapters_that_would_reach_one_layer_of_a_group_are_refused(per, small, tmp_path):
    """peft, AutoPeftModel and transformers wrap a shared module once, under its first name."""
    folder, before = save(small, tmp_path / "small"), logits(small, BATCH)
    refusal = r"would not reach .* valid is ffmerge.add_adapters\(model, …, per='layer' or"
    with pytest.raises(ValueError, match=refusal):
        get_peft_model(small, settings(FF))
    assert torch.equal(logits(small, BATCH), before)  # it can be gone on with
    adapted = add_adapters(small, settings(FF), per)
    after = shake(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.save_pretrained(tmp_path / "later")
    with pytest.raises(OSError, match=rf"one adapter a {per}: ffmerge\.add_adapters"):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    for attach in (
        lambda model: PeftModel.from_pretrained(model, tmp_path / "adapter"),
        lambda model: model.load_adapter(str(tmp_path / "adapter")),
    ):
        with pytest.raises(ValueError, match=refusal):
            attach(load(folder))
    adapted.load_adapter(tmp_path / "later", "another")  # all of its layers are wrapped
    assert torch.equal(logits(adapted.eval(), BATCH), after)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_settings_that_take_from_shared_weights_are_for_sublayers(init, small):
    before = logits(small, BATCH)
    taking = LoraConfig(target_modules=FF, r=2, init_lora_weights=init, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=f"init_lora_weights is '{init}', which takes from"):
        add_adapters(small, taking, "layer")
    adapted = add_adapters(small, taking, "sublayer")
    assert torch.allclose(logits(adapted.eval(), BATCH), before, atol=1e-5)


@pytest.mark.parametrize(
    "meant",
    [
        {"target_modules": ["up_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": r".*layers\.[13]\.mlp\.up_proj"},
        {"target_modules": ["q_proj"], "modules_to_save": ["down_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
    ],
)
def test_a_shared_sublayer_has_adapters_in_all_of_its_layers_or_in_none(meant, small):
    before = [name for name, _ in small.named_parameters()]
    with pytest.raises(ValueError, match=r"per is 'sublayer' and the adapters are for some of"):
        add_adapters(small, LoraConfig(r=2, task_type="CAUSAL_LM", **meant), "sublayer")
    assert [name for name, _ in small.named_parameters()] == before


def test_adapters_of_the_base_are_opened_by_layer(small, tmp_path):
    base = get_peft_model(make_model("llama"), settings(FF))
    shake(base)
    base.save_pretrained(tmp_path / "all")
    some = LoraConfig(target_modules=FF, r=2, layers_to_transform=[0, 1], task_type="CAUSAL_LM")
    get_peft_model(make_model("llama"), some).save_pretrained(tmp_path / "some")
    for name, per in (("all", "sublayer"), ("some", "sublayer"), ("some", "layer")):
        with pytest.raises(ValueError, match=f"per is '{per}' and the adapters in .* are for"):
            add_adapters(small, tmp_path / name, per)
    opened = add_adapters(small, tmp_path / "all", "layer")
    assert sum("lora_A" in name for name, _ in opened.named_parameters()) == 3 * 4


def test_what_is_no_adapter_is_told(small, tmp_path):
    for adapters, match in (({"r": 2}, "are a dict; valid are"), (tmp_path / "x", "is no folder")):
        with pytest.raises(ValueError, match=match):
            add_adapters(small, adapters, "layer")


def test_one_adapter_a_shared_sublayer_would_be_exact_but_leaves_wrappers_behind(small):
    adapted = add_adapters(small, settings(FF), "sublayer")
    after = shake(adapted)
    for layer in adapted.modules():
        if hasattr(layer, "lora_A"):
            layer.merge()
    assert torch.allclose(logits(adapted, BATCH), after, atol=1e-5)


@pytest.mark.parametrize("targets", [ATTENTION, ["embed_tokens"]], ids=["attention", "words"])
def test_adapters_on_weights_that_no_layer_shares_are_folded_as_ever(targets, small, tmp_path):
    adapted = get_peft_model(small, settings(targets))
    after = shake(adapted)
    folded = adapted.merge_and_unload()
    assert torch.allclose(logits(folded, BATCH), after, atol=1e-5)
    again = load(save(folded, tmp_path / "folded"))
    assert find_shared_modules(again) and torch.equal(logits(again, BATCH), logits(folded, BATCH))


def test_the_remedy_that_the_refusal_names_works(small, tmp_path):
    adapted = add_adapters(untie(small), settings(FF), "layer")
    after = shake(adapted)
    folded = adapted.merge_and_unload()
    assert torch.allclose(logits(folded, BATCH), after, atol=1e-5)
    plain = load(save(folded, tmp_path / "folded"))
    assert torch.allclose(logits(plain, BATCH), after, atol=1e-5) and not find_shared_modules(plain)


def test_a_model_that_refused_transformers_adapters_is_as_before(small, tmp_path):
    before = logits(small, make_batch("llama"))
    with pytest.raises(ValueError, match="would not reach"):
        small.add_adapter(LoraConfig(r=2, target_modules=["up_proj"]))
    assert torch.equal(logits(load(save(small, tmp_path / "small")), make_batch("llama")), before)


def test_another_choice_is_refused(small):
    with pytest.raises(ValueError, match=r"per is 'both'; valid are 'layer' and 'sublayer'"):
        add_adapters(small, settings(FF), "both")


def test_peft_finds_the_tied_base_by_its_folder(small, tmp_path):
    base = load(save(small, tmp_path / "small"))
    adapted = get_peft_model(base, settings(ATTENTION))
    after = shake(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits(again, BATCH), after)
    assert find_shared_modules(again)


def test_a_model_with_adapters_is_not_saved_as_if_it_had_none(small, tmp_path):
    adapted = get_peft_model(small, settings(ATTENTION))
    inside = adapted.base_model.model
    with pytest.raises(ValueError, match=r"PeftModel.*its own save_pretrained"):
        save(adapted, tmp_path / "not")
    with pytest.raises(ValueError, match=r"has adapters in it; valid is"):
        save(inside, tmp_path / "not")
    assert list(tmp_path.iterdir()) == []


def test_what_was_folded_into_shared_parameters_is_not_saved(small, tmp_path):
    """Without the guard, which needs `import ffmerge`: parameters in two modules give it away."""
    adapted = get_peft_model(untie_adapters(small), settings(FF))
    shake(adapted)
    with pytest.raises(ValueError, match=r"are one parameter in two modules, .*; valid is"):
        save(adapted.unload(), tmp_path / "not")
    assert list(tmp_path.iterdir()) == []


def test_sublayers_with_adapters_of_another_kind_are_refused():
    settings = VeraConfig(r=2, target_modules=["down_proj"], init_weights=False)
    with pytest.raises(ValueError, match="has adapters on its projections"):
        merge(get_peft_model(make_model("llama"), settings), {"decoder": "1-3"}, method="vanilla")


@pytest.mark.parametrize(
    "kind",
    [
        IA3Config(target_modules=FF, feedforward_modules=FF),
        LoHaConfig(target_modules=FF),
        LoKrConfig(target_modules=FF),
        OFTConfig(target_modules=FF, oft_block_size=4),
        BOFTConfig(target_modules=FF, boft_block_size=4),
        VeraConfig(target_modules=["down_proj"], r=2),
        LoraConfig(target_modules="all-linear"),
        LoraConfig(target_modules=FF, use_dora=True),
    ],
    ids=lambda kind: type(kind).__name__,
)
def test_adapters_of_any_kind_would_not_reach_every_layer(kind, small):
    before = logits(small, BATCH)
    with pytest.raises(ValueError, match=r"valid is ffmerge\.add_adapters"):
        get_peft_model(small, kind)
    assert torch.equal(logits(small, BATCH), before)


@pytest.mark.parametrize(("per", "other"), [("layer", "sublayer"), ("sublayer", "layer")])
def test_trained_adapters_are_opened_only_as_they_were_trained(per, other, small, tmp_path):
    folder = save(small, tmp_path / "small")
    adapted = add_adapters(small, settings(FF), per)
    shake(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    again = load(folder)
    with pytest.raises(ValueError, match=f"per is '{other}' and the adapters in .* are for"):
        add_adapters(again, tmp_path / "adapter", other)
    assert not any("lora_" in name for name, _ in again.named_parameters())


def test_adapters_of_some_layers_only_are_opened_as_they_are(small, tmp_path):
    folder = save(small, tmp_path / "small")
    some = LoraConfig(target_modules=FF, r=2, layers_to_transform=[1], task_type="CAUSAL_LM")
    adapted = add_adapters(small, some, "layer")
    after = shake(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    again = add_adapters(load(folder), tmp_path / "adapter", "layer")
    assert torch.equal(logits(again.eval(), BATCH), after)


def test_what_other_models_tie_is_left_to_them():
    model = nn.ModuleDict({"words": nn.Embedding(8, 4), "inner": nn.Linear(4, 4)})
    model["head"] = nn.Linear(4, 8, bias=False)
    model["head"].weight = model["words"].weight
    adapted = get_peft_model(model, LoraConfig(target_modules=["head"], r=2))
    assert any("head.lora_A" in name for name, _ in adapted.named_parameters())
