"""Every architecture: found and right, or refused with the reason; no third outcome."""

from contextlib import nullcontext

import pytest
import torch
import transformers
from architectures import check, look, sweep
from families import KEYS, LAYERS, MAKERS, PLAIN, T5, TEXT, logits, make, make_batch, make_model
from modeltypes import CLASSES, GIVEN, INVALID, MISSING, PART, build
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

import ffmerge
from ffmerge.feedforward import BETWEEN, EXPERTS, HALVES, NESTED, OTHER, REASONS
from ffmerge.patches import Plan, apply_plan
from ffmerge.refitting import compute_output, learn_activation
from ffmerge.sublayers import find_activation, find_stacks
from ffmerge.weights import permute

PICTURES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
TOWERS = {"text_config": PLAIN, "vision_config": PICTURES}
FUSED = {
    "phi3": (AutoModelForCausalLM, KEYS),
    "glm4": (AutoModelForCausalLM, KEYS | {"head_dim": 8}),
    "modernbert": (AutoModelForMaskedLM, PLAIN | {"cls_token_id": 1, "sep_token_id": 1}),
}


def make_fused(kind):
    auto, settings = FUSED[kind]
    return make(kind, auto, **settings)


def make_pairs():
    """A batch for two towers; half of some texts is padding."""
    texts = make_batch("gpt2", n=4, padded=True)
    generator = torch.Generator().manual_seed(0)
    return texts | {"pixel_values": torch.randn(4, 3, 8, 8, generator=generator)}


# --- two projections in one matrix


@pytest.mark.parametrize("kind", FUSED)
def test_a_fused_gate_is_two_projections_in_one_matrix(kind):
    model, batch = make_fused(kind), make_batch("gpt2")
    (stack,) = find_stacks(model).values()
    before, ff = logits(model, batch), stack.sublayers[1]
    weights = ff.read()
    assert ff.is_gated and ff.d_ff == 24 and len(ff.modules()) == 2
    assert weights.W_in.shape == weights.W_gate.shape == (24, 16)
    assert ff.n_parameters == 3 * 24 * 16
    ff.write(weights)
    assert torch.equal(logits(model, batch), before)
    x = torch.randn(2, 5, 16)
    given = compute_output(weights, x, find_activation(model))  # which half is W_gate is seen here
    assert torch.allclose(ff.layer.mlp(x), given, atol=1e-6)
    ff.write(permute(weights, torch.randperm(24)))
    assert (logits(model, batch) - before).norm() <= 1e-5 * before.norm()


@pytest.mark.parametrize("kind", FUSED)
def test_a_fused_gate_is_merged_and_pruned(kind):
    model, batches = make_fused(kind), [make_batch("gpt2", seed=s) for s in range(2)]
    (name,) = stacks = find_stacks(model)
    features, seen = ffmerge.collect_features(model, batches, tokens=60), []
    handle = (
        stacks[name]
        .sublayers[2]
        .module("W_out")
        .register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    )
    logits(model, batches[0])
    handle.remove()
    assert torch.equal(features[name][2], seen[0])  # the component-wise product
    small = ffmerge.merge(model, {name: "1-2"}, features)
    fewer = ffmerge.count_parameters(model) - ffmerge.count_parameters(small)
    assert fewer == stacks[name].sublayers[1].n_parameters
    for method in ("refit", "neurons_obs_refit", "ff_drop"):
        score = lambda small: float(logits(small, batches[0]).norm())  # noqa: E731
        small = ffmerge.compress(model, method, 1, batches * 3, evaluate=score, tokens=60)
        assert logits(small, batches[0]).isfinite().all()
        assert ffmerge.count_parameters(small) < ffmerge.count_parameters(model)


# --- two towers


def test_two_towers_are_two_stacks_by_name():
    model, batch = make("clip", **TOWERS), make_pairs()
    stacks = find_stacks(model)
    assert list(stacks) == ["text", "vision"]
    features = ffmerge.collect_features(model, [batch], tokens=10)
    n_tokens = int(batch["attention_mask"].sum())
    assert [len(features[name][0]) for name in stacks] == [n_tokens, 4 * (4 + 1)]
    small = ffmerge.merge(model, {"text": "0-1", "vision": "1-3"}, features)
    with torch.no_grad():
        assert small(**batch).logits_per_image.isfinite().all()
    few = apply_plan(model, Plan(dropped={"vision": (1, 2)}))
    assert few.config.vision_config.num_hidden_layers == LAYERS - 2
    assert few.config.text_config.num_hidden_layers == LAYERS
    narrow = apply_plan(model, Plan(neurons={"text": (7,) * LAYERS}))
    assert narrow.config.text_config.intermediate_size == 7
    assert narrow.config.vision_config.intermediate_size == 24


def test_stacks_are_named_by_where_their_paths_part():
    assert list(find_stacks(make("siglip", **TOWERS))) == ["text", "vision"]
    both = {"encoder": AutoConfig.for_model("bert", **PLAIN)}
    both["decoder"] = AutoConfig.for_model(
        "bert", **PLAIN, is_decoder=True, add_cross_attention=True
    )
    config = transformers.EncoderDecoderConfig(**{k: v.to_dict() for k, v in both.items()})
    assert list(find_stacks(transformers.EncoderDecoderModel(config))) == ["encoder", "decoder"]
    config = AutoConfig.for_model("bloom", **TEXT, hidden_size=16, n_layer=LAYERS, n_head=2)
    assert list(find_stacks(AutoModelForCausalLM.from_config(config))) == ["decoder"]


# --- refused, with the reason

MOE = KEYS | {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
REFUSED = {
    "mixtral": (EXPERTS, KEYS | {"num_local_experts": 4}),
    "qwen2_moe": (EXPERTS, MOE | {"shared_expert_intermediate_size": 24}),
    "deepseek_v2": (EXPERTS, {}),
    "bitnet": (BETWEEN, KEYS),
    "swin": (NESTED, {}),
    "albert": (NESTED, {}),
    "wav2vec2-conformer": (OTHER, {}),
    "xlm": (OTHER, {}),
    "moonshine": (HALVES, {}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_merged_is_refused_with_the_reason(kind):
    reason, settings = REFUSED[kind]
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(kind, **settings))
    with pytest.raises(ValueError) as error:
        find_stacks(model)
    assert reason in str(error.value) and "valid are" in str(error.value)
    assert [r for r in REASONS if r in str(error.value)] == [reason]


@pytest.mark.parametrize("kind", ["bitnet", "kosmos_2_text_model"])
def test_a_norm_between_is_found_where_widths_are_the_same(kind):
    sizes = KEYS | {"intermediate_size": 16, "num_key_value_heads": 2}
    if kind == "bitnet":
        model = make("bitnet", AutoModelForCausalLM, **sizes)
    else:
        text = {"embed_dim": 16, "layers": 4, "ffn_dim": 16, "attention_heads": 2, "vocab_size": 99}
        config = transformers.Kosmos2Config(text_config=text).text_config
        model = transformers.models.kosmos2.modeling_kosmos2.Kosmos2TextForCausalLM(config)
    with pytest.raises(ValueError, match="norm or other weights between W_in and W_out"):
        find_stacks(model)
    assert len(find_stacks(make("llama", AutoModelForCausalLM, **sizes))["decoder"]) == LAYERS


def test_buffers_between_count_as_weights():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.rand(24))

        def forward(self, x):
            return self.scale * nn.functional.silu(x)

    model = make_model("llama")
    model.model.layers[2].mlp.act_fn = Scaled()
    with pytest.raises(ValueError, match=r"layer 2 .* norm or other weights between"):
        find_stacks(model)


def test_adapters_are_named_as_the_reason():
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(target_modules=["c_fc"], fan_in_fan_out=True)
    with pytest.raises(ValueError, match="adapters on its projections"):
        find_stacks(get_peft_model(make_model("gpt2"), settings))


# --- weights that cannot be written to


def parametrise(model):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(pick(model), "weight", Double())


def mask(model):
    prune.random_unstructured(pick(model), "weight", amount=0.5)


def quantise(model):
    weight = pick(model).weight
    pick(model).weight = nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)


def offload(model):
    pick(model).to("meta")


def pick(model):
    return find_stacks(model)["decoder"].sublayers[2].module("W_out")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (parametrise, "parametrised"),
        (mask, "pruning mask"),
        (quantise, "quantised"),
        (offload, "offloaded"),
    ],
)
def test_weights_that_cannot_be_written_to_are_refused_before_anything_runs(change, word):
    model = make_model("llama")
    change(model)
    never = iter(lambda: pytest.fail("a batch was asked for"), None)
    message = rf"layers\.2\.mlp\.down_proj in LlamaForCausalLM are .*{word}.*; valid are plain"
    with pytest.raises(ValueError, match=message):
        ffmerge.merge(model, {"decoder": "1-2"}, method="vanilla")
    with pytest.raises(ValueError, match=message):
        ffmerge.apply_patch(model, ffmerge.Patch(Plan()))
    with pytest.raises(ValueError, match=message):
        ffmerge.compress(model, "drop", 1, evaluate=lambda small: next(never))


def test_weights_that_accelerate_keeps_elsewhere_are_refused():
    from accelerate import cpu_offload

    model = cpu_offload(make_model("llama"), torch.device("cpu"))
    with pytest.raises(ValueError, match="offloaded or spread over devices"):
        ffmerge.merge(model, {"decoder": "1-2"}, method="vanilla")


def test_a_masked_bias_is_refused():
    model = make_model("gpt2")
    prune.random_unstructured(pick(model), "bias", amount=0.5)
    with pytest.raises(ValueError, match=r"h\.2\.mlp\.c_proj .* pruning mask.*; valid are plain"):
        ffmerge.merge(model, {"decoder": "1-2"}, method="vanilla")


def test_bits_of_bitsandbytes_are_refused():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = make_model("llama")
    for layer in model.model.layers:
        layer.mlp.up_proj = bitsandbytes.nn.Linear4bit(16, 24, bias=False).to("cpu")
    with pytest.raises(ValueError, match="quantised"):
        ffmerge.merge(model, {"decoder": "1-2"}, method="vanilla")


def test_a_merged_model_is_not_merged_again():
    small = ffmerge.merge(make_model("llama"), {"decoder": "1-2"}, method="vanilla")
    for again in (
        lambda: ffmerge.merge(small, {"decoder": "2-3"}, method="vanilla"),
        lambda: ffmerge.compress(small, "neurons_magnitude", 1),
        lambda: apply_plan(small, Plan(dropped={"decoder": (0,)})),
    ):
        with pytest.raises(ValueError, match="share already; valid is an uncompressed model"):
            again()


def test_a_forward_that_a_copy_would_not_take_along_is_refused():
    whole, inner = make_model("llama"), make_model("llama")
    run = whole.forward
    whole.forward = lambda **inputs: run(**inputs)  # as torch.compile(whole.forward) does
    mlp = inner.model.layers[1].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.up_proj(x))
    for model, name in ((whole, "the model"), (inner, "model.layers.1.mlp")):
        with pytest.raises(
            ValueError, match=f"forward of {name} in LlamaForCausalLM is a function"
        ):
            ffmerge.merge(model, {"decoder": "1-2"}, method="vanilla")


# --- layers that go


def test_a_drop_that_no_configuration_can_say_is_refused():
    model = make("t5", transformers.AutoModelForSeq2SeqLM, **T5, decoder_start_token_id=0)
    few = apply_plan(model, Plan(dropped={"encoder": (1, 2), "decoder": (3,)}))
    assert (few.config.num_layers, few.config.num_decoder_layers) == (LAYERS - 2, LAYERS - 1)
    with pytest.raises(ValueError, match="cannot say which layers of the encoder are dropped"):
        apply_plan(model, Plan(dropped={"encoder": (0,)}))  # it holds the position bias of all
    kinds = {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "num_heads": 2}
    neo = make("gpt_neo", AutoModelForCausalLM, **TEXT, **kinds, hidden_size=16, window_size=4)
    with pytest.raises(ValueError, match="cannot say which layers of the decoder are dropped"):
        apply_plan(neo, Plan(dropped={"decoder": (1,)}))


def test_layers_that_others_read_by_number_are_not_dropped():
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "patch_size": 8}
    vision |= {"num_attention_heads": 2, "image_size": 16}
    depth = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "is_hybrid": False}
    depth = transformers.DPTForDepthEstimation(transformers.DPTConfig(**vision, **depth))
    few = apply_plan(depth, Plan(dropped={"encoder": (4, 5)}))  # above all that are read
    image = {"pixel_values": torch.randn(1, 3, 16, 16)}
    assert depth(**image)[0].shape == few(**image)[0].shape
    with pytest.raises(ValueError, match=r"backbone_out_indices reads them by their numbers, \[0"):
        apply_plan(depth, Plan(dropped={"encoder": (3,)}))
    text = KEYS | {"model_type": "llama"}
    for number, layer, is_refused in ((3, 1, True), (-2, 1, False), (-2, 5, True), (-3, 4, True)):
        config = transformers.LlavaConfig(
            vision_config=vision | {"model_type": "clip_vision_model"},
            text_config=text,
            vision_feature_layer=number,
        )
        model = transformers.LlavaForConditionalGeneration(config)
        stacks = {("vision" in stack.path): name for name, stack in find_stacks(model).items()}
        apply_plan(model, Plan(dropped={stacks[False]: (1,)}))
        with (
            pytest.raises(ValueError, match="vision_feature_layer") if is_refused else nullcontext()
        ):
            apply_plan(model, Plan(dropped={stacks[True]: (layer,)}))


def test_layers_whose_number_scales_their_attention_are_dropped_from_the_end_alone():
    sizes = {"n_embd": 16, "n_layer": 4, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    config = transformers.ImageGPTConfig(**sizes, scale_attn_by_inverse_layer_idx=True)
    model = transformers.ImageGPTForCausalImageModeling(config)
    (name,) = find_stacks(model)
    assert len(find_stacks(apply_plan(model, Plan(dropped={name: (3,)})))[name]) == 3
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx makes each"):
        apply_plan(model, Plan(dropped={name: (1,)}))


def test_a_dropped_layer_that_has_a_head_elsewhere_is_refused():
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 24}
    sizes |= {"decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    resnet = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}
    config = transformers.DeformableDetrConfig(
        **sizes, backbone_config=resnet, with_box_refine=True, num_queries=5
    )
    model = transformers.DeformableDetrForObjectDetection(config)
    with pytest.raises(ValueError, match=r"bbox_embed.* is not there"):
        apply_plan(model, Plan(dropped={"decoder": (1,)}))


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "DINOv3ViT"])
def test_the_last_stage_of_a_vision_model_moves_with_its_layers(kind):
    config = getattr(transformers, f"{kind}Config")(**PICTURES)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    few = apply_plan(model, Plan(dropped={"encoder": (1,)}))
    assert few.config.out_features == [f"stage{LAYERS - 1}"]
    again = type(model)(type(config).from_dict(few.config.to_dict()))
    again.load_state_dict(few.state_dict())
    image = {"pixel_values": torch.randn(1, 3, 8, 8)}
    assert torch.equal(again.eval()(**image)[0], few(**image)[0])


def test_squares_in_an_unknown_order_are_refused():
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "attention_hidden_size": 16,
    }
    model = transformers.RwkvModel(transformers.RwkvConfig(**sizes, intermediate_size=16))
    with pytest.raises(ValueError, match=OTHER):
        find_stacks(model)


def test_an_activation_with_weights_of_its_own_is_refused_by_least_squares_alone():
    model, batch = make("apertus", AutoModelForCausalLM, **KEYS), make_batch("gpt2")
    features = ffmerge.collect_features(model, [batch], tokens=20)
    ffmerge.merge(model, {"decoder": "1-2"}, features)
    with pytest.raises(ValueError, match=r"activation 'xielu' of .* has weights of its own"):
        ffmerge.merge(model, {"decoder": "1-2"}, features, method="refit", calibration=[batch])


def test_a_later_layer_with_another_activation_is_noticed():
    model, batch = make_model("llama"), make_batch("llama")
    layer = find_stacks(model)["decoder"].layers[2]
    layer.mlp.act_fn = nn.Tanh()
    with pytest.raises(ValueError, match="of layer 2 of the decoder"):
        learn_activation(model, batch)


def test_a_dropped_layer_takes_its_kind_of_attention_along():
    settings = KEYS | {"head_dim": 8, "sliding_window": 4, "num_hidden_layers": 7}
    model = make("gemma3_text", AutoModelForCausalLM, **settings)
    kinds = model.config.layer_types
    small = apply_plan(model, Plan(dropped={"decoder": (0, 1)}))
    assert small.config.layer_types == kinds[2:]
    batch = make_batch("gpt2", n=2)
    kwargs = {"max_new_tokens": 6, "do_sample": False}
    cached = small.generate(**batch, **kwargs, use_cache=True)
    assert torch.equal(cached, small.generate(**batch, **kwargs, use_cache=False))


# --- a result is what was promised


def test_a_result_that_is_not_what_was_promised_is_an_error(monkeypatch):
    model = make_model("llama")
    plan = Plan({"decoder": (ffmerge.window(1, 2),)})
    with monkeypatch.context() as patched:
        patched.setattr(ffmerge.sublayers.FeedForward, "share", lambda self, other: None)
        with pytest.raises(RuntimeError, match=r"sublayers \[0, 1, 2, 3\].* \[0, 1, 1, 3\] .*prom"):
            apply_plan(model, plan)
    with monkeypatch.context() as patched:
        patched.setattr(ffmerge.checks, "_count", lambda m: 7 if m is model else 8)
        with pytest.raises(RuntimeError, match="came out with 8 parameters"):
            apply_plan(model, Plan())
    name = "model.layers.1.mlp.up_proj.weight"
    ffmerge.checks.check_arrival(model, {name: model.get_parameter(name).detach()})
    with pytest.raises(RuntimeError, match="does not hold what was written"):
        ffmerge.checks.check_arrival(model, {name: torch.zeros(24, 16)})


@pytest.mark.parametrize("family", MAKERS)
def test_the_activation_function_explains_what_an_ff_computes(family):
    model, batch = make_model(family), make_batch(family)
    assert learn_activation(model, batch) is not None
    for name in ("hidden_act", "activation_function"):
        if hasattr(model.config, name):
            setattr(model.config, name, "tanh")
    with pytest.raises(ValueError, match=r"are \d+% off from what its configuration"):
        learn_activation(model, batch)


# --- compiled models


def test_compiled_models_are_looked_through():
    model, batches = make_model("llama"), [make_batch("llama")]
    wanted = ffmerge.collect_features(model, batches, tokens=10)["decoder"]
    for compiled in (torch.compile(model, backend="eager"), make_model("llama")):
        if compiled is not model and not hasattr(compiled, "_orig_mod"):
            compiled.compile(backend="eager")
        logits(compiled, batches[0])  # compiled before there are hooks
        found = ffmerge.collect_features(compiled, batches, tokens=10)
        assert all(map(torch.equal, found["decoder"], wanted))
        small = ffmerge.merge(compiled, {"decoder": "1-2"}, found)
        plain = ffmerge.merge(model, {"decoder": "1-2"}, found)
        assert type(small) is type(model)
        assert torch.equal(logits(small, batches[0]), logits(plain, batches[0]))


# --- the sweep


@pytest.mark.parametrize(
    "kind",
    "bart bert bloom blip-2 cohere2 dbrx detr distilbert falcon glm4v gpt_neox granitemoe informer "
    "kosmos-2 llava mamba musicgen nllb-moe opt trocr xlm-roberta-xl".split(),
)
def test_a_sample_of_all_model_types_is_right_or_refused(kind):
    model = build(kind)
    stacks = look(model)
    for stack in stacks.values() if isinstance(stacks, dict) else ():
        check(model, stack)


def list_absent(page):
    """Of every type that the page has no model of: the reason."""
    absent = {}
    for row in page.split("## No model")[1].split("## Found")[0].split("\n| ")[2:]:
        reason, kinds = row.rstrip("| \n").split(" | ")
        absent |= dict.fromkeys(kinds.split(", "), reason.rpartition(" (")[0])
    return absent


def test_a_type_has_no_model_here_for_a_reason_that_still_holds(repository):
    absent = list_absent((repository / "docs" / "architectures.md").read_text(encoding="utf-8"))
    packages = [MISSING.format(name) for name in ("detectron2", "natten", "timm", "torchaudio")]
    assert {*absent.values()} == {*packages, INVALID, PART}
    for kind, reason in absent.items():
        assert build(kind) == reason, kind


@pytest.mark.slow
@pytest.mark.parametrize(("given", "kind"), [(g, kind) for g in (GIVEN, CLASSES) for kind in g])
def test_what_is_given_to_build_a_model_is_needed(given, kind, monkeypatch):
    monkeypatch.delitem(given, kind)
    try:
        outcome = build(kind)
    except Exception:  # whatever its code raises
        return
    assert isinstance(outcome, str)


@pytest.mark.slow
def test_every_model_type_is_right_or_refused_as_the_docs_say(repository):
    page = (repository / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert f"transformers {transformers.__version__} " in page
    assert sweep() == page
