"""Any tool loads the saved folder tied, or refuses: never sublayers at random with a warning."""

import copy
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from families import (
    KEYS,
    LAYERS,
    MAKERS,
    VOCABULARY,
    logits,
    make,
    make_batch,
    make_labelled,
    make_model,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrizations, prune
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2LMHeadModel,
)

from ffmerge.checkpoints import find_shared_modules, load, save, shared_keys
from ffmerge.compression import merge
from ffmerge.patches import Plan, apply_plan
from ffmerge.saving.autoclasses import _find_place, _finish
from ffmerge.saving.exporting import export
from ffmerge.sublayers import find_stacks

AUTO = {
    "vit": transformers.AutoModelForImageClassification,
    "marian": transformers.AutoModelForSeq2SeqLM,
    "bert": transformers.AutoModelForMaskedLM,
}


def merge_some(family, groups="1-3"):
    model = make_model(family)
    return merge(model, dict.fromkeys(find_stacks(model), groups), method="vanilla")


def assert_same(a, b):
    assert shared_keys(a) == shared_keys(b)
    for (name, p), (other, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q), name


@pytest.mark.parametrize("family", MAKERS)
def test_auto_classes_give_the_tied_model_and_so_again(family, tmp_path):
    small = merge_some(family)
    auto = AUTO.get(family, AutoModelForCausalLM)
    again = auto.from_pretrained(save(small, tmp_path / "small"))
    assert_same(again, small)
    assert type(again) is type(small) and not again.training
    assert again.config.model_type == make_model(family).config.model_type
    again.save_pretrained(tmp_path / "plainly")  # as Trainer, accelerate and others do
    third = auto.from_pretrained(tmp_path / "plainly")
    assert_same(third, small)
    assert_same(load(tmp_path / "plainly"), small)
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("small", "plainly")]
    assert files[0].keys() == files[1].keys()
    assert torch.equal(logits(third, make_batch(family)), logits(small, make_batch(family)))


@pytest.mark.parametrize("family", MAKERS)
def test_auto_classes_build_uneven_and_silent_sublayers(family, tmp_path):
    model = make_model(family)
    plan = Plan(neurons={name: (24, 1, 7, 7) for name in find_stacks(model)})
    narrow = apply_plan(model, plan)
    auto = AUTO.get(family, AutoModelForCausalLM)
    assert_same(auto.from_pretrained(save(narrow, tmp_path / "small")), narrow)


def test_another_head_or_none_keeps_the_sublayers_tied(tmp_path):
    small = merge_some("gpt2")
    folder = save(small, tmp_path / "small")
    inner = AutoModel.from_pretrained(folder)
    assert_same(inner, small.transformer)
    scored = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert_same(scored.transformer, small.transformer)
    assert scored.score.out_features == 3
    inner.save_pretrained(tmp_path / "inner")
    assert_same(AutoModel.from_pretrained(tmp_path / "inner"), inner)
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "inner").transformer, inner)


def test_classes_that_cannot_tie_refuse(tmp_path):
    folder = save(merge_some("gpt2"), tmp_path / "small")
    with pytest.raises(ValueError, match="load them with AutoModel, after `import ffmerge`"):
        GPT2LMHeadModel.from_pretrained(folder)
    with pytest.raises(AttributeError):
        GPT2LMHeadModel.from_pretrained(folder, config=AutoConfig.from_pretrained(folder))
    with pytest.raises(ValueError, match="AutoModelForImageClassification has no gpt2"):
        transformers.AutoModelForImageClassification.from_pretrained(folder)


@pytest.mark.parametrize("family", MAKERS)
def test_a_configuration_given_by_hand_loads_nothing(family, tmp_path):
    """Nobody reads config.json then; one shared weight that stays in its place, empty, tells."""
    small, plain = merge_some(family), make_model(family)
    folder = save(small, tmp_path / "small")
    small.save_pretrained(tmp_path / "plainly")
    for path in (folder, tmp_path / "plainly"):
        with pytest.raises(RuntimeError):
            type(plain).from_pretrained(path, config=plain.config)
    stored = load_file(folder / "model.safetensors")
    shapes = [tuple(held.shape) for held in stored.values() if not held.numel()]
    assert shapes == [(0,)] * len(find_stacks(small))  # a part may be loaded by a class of its own
    empty = {key for key, held in small.state_dict().items() if not held.numel()}
    assert len(empty) == len(find_stacks(small)) and empty < shared_keys(small).keys()
    with pytest.raises(RuntimeError):
        plain.load_state_dict(small.state_dict(), strict=False)


def test_where_ffmerge_is_not_known_only_what_was_exported_is_loaded(tmp_path, repository):
    library = str(repository / "lib")
    folder = save(merge_some("gpt2"), tmp_path / "small")
    plain = export(folder, tmp_path / "plain")
    code = f"""
import sys, transformers as t
for load in (t.AutoModelForCausalLM.from_pretrained, t.AutoModel.from_pretrained,
             t.GPT2LMHeadModel.from_pretrained, t.GPT2Model.from_pretrained,
             lambda f: t.AutoModelForCausalLM.from_pretrained(f, trust_remote_code=True)):
    try:
        load({str(folder)!r})
    except ValueError as error:
        assert 'ffmerge' in str(error), error
    else:
        raise SystemExit('loaded')
t.AutoModelForCausalLM.from_pretrained({str(plain)!r})
assert 'ffmerge' not in sys.modules
sys.path.insert(0, {library!r})
import ffmerge  # late, and yet
t.AutoModelForCausalLM.from_pretrained({str(folder)!r})
"""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], check=True, env=clean, cwd=tmp_path)


def test_it_loads_by_its_name_from_the_hub(tmp_path, monkeypatch):
    small = merge_some("gpt2")
    folder, sent = save(small, tmp_path / "small"), tmp_path / "hub" / "models--me--small"
    (sent / "refs").mkdir(parents=True)
    (sent / "refs" / "main").write_text("a" * 40)
    shutil.copytree(folder, sent / "snapshots" / ("a" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    where = {"cache_dir": str(tmp_path / "hub"), "local_files_only": True}
    assert_same(AutoModelForCausalLM.from_pretrained("me/small", **where), small)
    assert_same(load("me/small", **where), small)
    assert_same(load(tmp_path, subfolder="small"), small)


def test_what_is_pushed_is_the_tied_folder(tmp_path, monkeypatch):
    small, pushed = merge_some("gpt2"), tmp_path / "pushed"

    class Hub:
        def create_repo(self, name, **unused):
            return type("Repo", (), {"repo_id": name})

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr("transformers.modeling_utils.hf_api", Hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", make_card)
    monkeypatch.setattr("transformers.modeling_utils.create_and_tag_model_card", make_card)
    monkeypatch.setattr(
        type(small), "_upload_modified_files", lambda self, d, *a, **k: shutil.copytree(d, pushed)
    )
    small.push_to_hub("me/small")
    assert_same(AutoModelForCausalLM.from_pretrained(pushed), small)


def make_card(*args, **kwargs):
    return type("Card", (), {"save": lambda self, path: None})()


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"
    )


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "llama"])
def test_the_folder_gets_the_tokenizer_that_the_bases_folder_gets(kind, tmp_path):
    model = make(kind, AutoModelForCausalLM, **KEYS)
    for name, each in {
        "base": model,
        "small": merge(model, {"decoder": "1-2"}, method="vanilla"),
    }.items():
        save(each, tmp_path / name, make_tokenizer())
        told = tmp_path / name / "tokenizer_config.json"  # as on the hub: for some kinds a lie
        content = json.loads(told.read_text()) | {"tokenizer_class": "LlamaTokenizer"}
        told.write_text(json.dumps(content))
    kinds = [type(AutoTokenizer.from_pretrained(tmp_path / name)) for name in ("base", "small")]
    assert kinds[0] is kinds[1]


def test_a_pipeline_reads_the_folder_alone(tmp_path):
    small = merge_some("gpt2")
    folder = save(small, tmp_path / "small", make_tokenizer())
    write = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    assert_same(write.model, small)
    (said,) = write("w5 w6 w7", max_new_tokens=4, do_sample=False)
    assert said["generated_text"].startswith("w5 w6 w7")
    save(small, folder, make_tokenizer())
    assert transformers.AutoTokenizer.from_pretrained(folder)("w5 w6")["input_ids"] == [5, 6]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(dtype, tmp_path):
    small = merge_some("llama")
    folder = save(small, tmp_path / "small")
    for again in (
        load(folder, dtype=dtype),
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype),
    ):
        assert_same(again, merge_some("llama").to(dtype))
    assert_same(load(save(again, tmp_path / "half")), again)  # stays in its dtype


def test_devices_and_disk(tmp_path):
    small, batch = merge_some("llama"), make_batch("llama")
    folder = save(small, tmp_path / "small")
    assert_same(AutoModelForCausalLM.from_pretrained(folder, device_map="cpu"), small)
    places = {f"model.layers.{i}": "cpu" for i in range(LAYERS)}
    places |= dict.fromkeys(
        ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu"
    )
    for on_disk in ((2, 3), (1, 2, 3), (0, 1)):
        chosen = places | {f"model.layers.{i}": "disk" for i in on_disk}
        folder_of = tmp_path / f"off{on_disk}"
        apart = load(folder, device_map=chosen, offload_folder=folder_of)
        assert torch.equal(logits(apart, batch), logits(small, batch)), on_disk
        with pytest.raises(ValueError, match=r"has weights on disk; valid is"):
            save(apart, tmp_path / "not")


def test_layers_that_share_lie_on_one_device(tmp_path):
    places = {"model.layers.1": 0, "model.layers.2": 1, "model.layers.3": "disk", "": 0}
    assert [_find_place(f"model.layers.{i}.mlp", places) for i in range(4)] == [0, 0, 1, "disk"]
    small = AutoModelForCausalLM.from_pretrained(save(merge_some("llama"), tmp_path / "small"))
    small.hf_device_map = places
    with pytest.raises(ValueError, match=r"are one module, on \[0, 1\]; valid is one device"):
        _finish(small, type(small))


def test_8_and_4_bits_through_auto_classes(tmp_path):
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    torch.manual_seed(0)
    wide = {"hidden_size": 64, "intermediate_size": 128}
    small = transformers.OlmoForCausalLM(
        transformers.OlmoConfig(**make_model("olmo").config.to_dict() | wide)
    )
    small = merge(small.eval(), {"decoder": "1-3"}, method="vanilla")
    folder, exact = save(small, tmp_path / "small"), logits(small, make_batch("olmo"))
    for bits, kind in (("load_in_8bit", Linear8bitLt), ("load_in_4bit", Linear4bit)):
        settings = transformers.BitsAndBytesConfig(**{bits: True})
        again = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings)
        assert find_shared_modules(again) == find_shared_modules(small)
        assert isinstance(again.model.layers[3].mlp.up_proj, kind)
        assert (logits(again, make_batch("olmo")) - exact).norm() < 0.3 * exact.norm()
        with pytest.raises(ValueError, match="is quantized; valid is the model before"):
            save(again, tmp_path / "not")


def test_compiled_models_compute_and_save_the_same(tmp_path):
    small, batch = merge_some("llama"), make_batch("llama")
    exact = logits(small, batch)
    compiled = torch.compile(small, backend="eager")
    assert torch.allclose(logits(compiled, batch), exact, atol=1e-6)
    assert_same(load(save(compiled, tmp_path / "small")), small)
    small.compile(backend="eager")  # in place
    assert_same(load(save(small, tmp_path / "small")), small)


@pytest.mark.parametrize("family", ["gpt2", "marian"])
def test_generating_with_and_without_a_cache(family, tmp_path):
    small = merge_some(family)
    again, ids = load(save(small, tmp_path / "small")), make_batch(family)["input_ids"]
    told = {"max_new_tokens": 6, "do_sample": False}
    expected = small.generate(ids, **told)
    for use_cache in (True, False):
        assert torch.equal(again.generate(ids, use_cache=use_cache, **told), expected)


def spoil(folder, kind):
    """What careless hands do to the files of a folder."""
    config, weights = folder / "config.json", folder / "model.safetensors"
    content = json.loads(config.read_text())
    base = content["base"]["gpt2"]
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-400])
    elif kind == "no header":
        weights.write_bytes(b"\0" * 100)
    elif kind == "a layer more":
        base["n_layer"] += 1
    elif kind == "a layer less":
        base["n_layer"] -= 1
    elif kind == "wider":
        base["n_inner"] += 1
    elif kind == "swapped":
        content["sharing"]["groups"] = [g[::-1] for g in content["sharing"]["groups"]]
    elif kind == "no sharing":
        del content["sharing"]
    elif kind == "another type":
        content["base"] = {"bert": base}
    elif kind == "unknown type":
        base["model_type"] = "nonsense"
        content["base"] = {"nonsense": base}
    elif kind == "of another merge":
        other = save(merge_some("gpt2", "0-1"), folder.parent / "other")
        shutil.copy(other / "model.safetensors", weights)
    elif kind == "of another model":
        save_file({"a": torch.ones(2)}, weights, {"format": "pt"})
    elif kind == "pickled":
        weights.unlink()
        torch.save(merge_some("gpt2").state_dict(), folder / "pytorch_model.bin")
    config.write_text(json.dumps(content))
    if kind == "no JSON":
        config.write_text("{")
    elif kind == "no config":
        config.unlink()
    elif kind == "no weights":
        weights.unlink()


SPOILT = (
    "truncated, no header, a layer more, a layer less, wider, swapped, no sharing, another type, "
    "unknown type, of another merge, of another model, pickled, no JSON, no config, no weights"
).split(", ")


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("beside", ["sharing.json", "none"])
def test_what_was_spoilt_is_refused_in_one_sentence(kind, beside, tmp_path):
    folder = save(merge_some("gpt2"), tmp_path / "small")
    if beside == "none":
        (folder / "sharing.json").unlink()
    spoil(folder, kind)
    verbosity = transformers.logging.get_verbosity()
    with pytest.raises((ValueError, OSError)) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value) or "config.json" in str(error.value)
    with pytest.raises((ValueError, OSError, KeyError)):
        AutoModelForCausalLM.from_pretrained(folder)
    assert transformers.logging.get_verbosity() == verbosity


def test_code_beside_a_tied_model_is_never_run(tmp_path):
    small = merge_some("gpt2")
    config = save(small, tmp_path / "small") / "config.json"
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": names}))
    (tmp_path / "small" / "evil.py").write_text("raise SystemExit('run')\n")
    assert_same(load(tmp_path / "small"), small)


@pytest.mark.parametrize("family", ["gpt2", "marian"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_the_same_with_checkpointing(family, reentrant):
    gradients = []
    for checkpointing in (False, True):
        small = merge_some(family).train()
        for module in small.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for name in ("attn_pdrop", "resid_pdrop", "dropout", "attention_dropout"):
            if hasattr(small.config, name):
                setattr(small.config, name, 0.0)
        for module in small.modules():  # Marian keeps its own numbers
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        if checkpointing:
            small.gradient_checkpointing_enable({"use_reentrant": reentrant})
        small(**make_labelled(family)).loss.backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in small.parameters() if p.grad is not None])
        )
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("projection", ["up_proj", "gate_proj", "down_proj"])
def test_a_layer_that_has_left_its_group_by_hand_is_not_loaded_shared(projection, tmp_path):
    """Without biases one weight alone tells: a plain save keeps what the configuration said."""
    small = merge_some("llama", "1-2")
    layers = small.model.layers
    own = copy.deepcopy(getattr(layers[1].mlp, projection))
    torch.nn.init.ones_(own.weight)
    setattr(layers[2].mlp, projection, own)
    small.save_pretrained(tmp_path)
    for from_pretrained in (load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=rf"lacks weights or holds others.*{projection}"):
            from_pretrained(tmp_path)
    assert torch.equal(
        load(save(small, tmp_path / "well")).model.layers[2].mlp.up_proj.weight,
        layers[2].mlp.up_proj.weight,
    )


def test_weights_of_two_layers_are_not_poured_into_one_module(tmp_path):
    """`load_state_dict` would keep the last one and say nothing."""
    model, small = make_model("llama"), merge_some("llama")
    before = {name: p.clone() for name, p in small.named_parameters()}
    with pytest.raises(
        ValueError, match=r"one module here, and two in what is loaded; valid is one"
    ):
        small.load_state_dict(model.state_dict())
    for other in (small.state_dict(), export_state(small)):
        assert small.load_state_dict(other) == ([], [])
    assert all(torch.equal(p, before[name]) for name, p in small.named_parameters())


def export_state(small):
    """As others write it: every name with its tensor."""
    state = small.state_dict()
    return state | {name: state[first].clone() for name, first in shared_keys(small).items()}


@pytest.mark.parametrize("kind", ["weight norm", "old weight norm", "mask"])
def test_shared_weights_that_are_computed_from_others_are_refused(kind, tmp_path):
    small = merge_some("llama")
    shared = small.model.layers[1].mlp.down_proj
    if kind == "mask":
        prune.random_unstructured(shared, "weight", 0.5)
    else:
        wrap = parametrizations.weight_norm if kind == "weight norm" else torch.nn.utils.weight_norm
        wrap(shared)
    with pytest.raises(ValueError, match=r"computes weights that layers share .* valid are plain"):
        save(small, tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("family", MAKERS)
def test_the_class_of_a_configuration_reads_what_it_wrote(family, tmp_path):
    """peft reads a base's configuration so, to see whether its vocabulary has grown."""
    small = load(save(merge_some(family), tmp_path))
    again = type(small.config).from_pretrained(tmp_path)
    wrote = small.config.to_dict() | {"_name_or_path": ""}
    assert again.to_dict() | {"_name_or_path": ""} == wrote and again.ffmerge["groups"]
    assert type(again) is type(small.config)
    same, unused = type(small.config).from_pretrained(
        tmp_path, return_unused_kwargs=True, nothing_of_it=1
    )
    assert same.to_dict() == again.to_dict() and unused == {"nothing_of_it": 1}


def test_adapters_alone_are_saved_with_adapters(tmp_path):
    small = load(save(merge_some("llama"), tmp_path / "small"))
    settings = LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM")
    get_peft_model(small, settings).save_pretrained(tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(names) == 2 * 4 and all(".lora_" in name for name in names)


@pytest.mark.parametrize("name", ["config", "output_loading_info"])
def test_load_takes_no_arguments_that_are_its_own(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} is given; valid is"):
        load(save(merge_some("gpt2"), tmp_path / "small"), **{name: True})
