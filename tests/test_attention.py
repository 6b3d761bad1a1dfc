"""Merging self-attention: moving heads changes nothing, planted orders are found, weights tie."""

import pytest
import torch
from families import (
    FUSED,
    KEYS,
    LAYERS,
    MAKERS,
    logits,
    make,
    make_batch,
    make_evidence,
    make_model,
)
from transformers import AutoModelForCausalLM

from ffmerge.activations import collect_heads
from ffmerge.alignment import correlate
from ffmerge.attention.heads import HeadOrder, average_values, permute_heads
from ffmerge.attention.merging import align_attention, match_heads, merge_attention
from ffmerge.attention.sublayers import BIASED, STRANGE
from ffmerge.checkpoints import find_shared_modules, load, save
from ffmerge.groups import window
from ffmerge.methods import Evidence, find_method
from ffmerge.patches import Patch, Plan, apply_patch, apply_plan, count_parameters
from ffmerge.saving.exporting import untie
from ffmerge.saving.sharing import count_untied
from ffmerge.sublayers import find_stacks

GROUPED = ("qwen2", "qwen3")  # with and without biases; a norm that is the same for all heads
OUTS = ("o_proj", "out_proj", "down_proj", "fc2", "dense")  # what the tiny families add with
KINDS = pytest.mark.parametrize("kind", [f for f in MAKERS if f != "gpt2"] + list(GROUPED))


def build(kind):
    """A tiny model; grouped ones have four heads of queries and two of keys and values."""
    if kind in MAKERS:
        return make_model(kind)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return make(kind, AutoModelForCausalLM, **KEYS | heads)


def batch_of(kind, **options):
    return make_batch(kind if kind in MAKERS else "llama", **options)


def draw_order(view, seed):
    """A random order that keeps groups of heads together."""
    generator = torch.Generator().manual_seed(seed)
    per_group = view.n_heads // view.n_groups
    groups = torch.arange(view.n_groups).flip(0)
    heads = [g * per_group + torch.randperm(per_group, generator=generator) for g in groups]
    dims = [torch.randperm(view.d_head, generator=generator) for _ in groups]
    return HeadOrder(torch.cat(heads), torch.stack(dims))


def write(layer, tensors):
    with torch.no_grad():
        for name, tensor in tensors.items():
            layer.get_parameter(name).copy_(tensor)


@KINDS
def test_moving_heads_and_their_dimensions_changes_nothing(kind):
    model, batch = build(kind), batch_of(kind, padded=True) if kind != "vit" else batch_of(kind)
    before = logits(model, batch)
    for stack in find_stacks(model).values():
        for i, view in enumerate(stack.attentions()):
            weights = view.read()
            write(stack.layers[i], view.arrange(weights))
            assert torch.equal(logits(model, batch), before)  # as it was read
            order = draw_order(view, i)
            moved = permute_heads(weights, order)
            assert order.moves_heads and not torch.equal(moved.W_v, weights.W_v)
            write(stack.layers[i], view.arrange(moved))
            torch.testing.assert_close(logits(model, batch), before)
            write(stack.layers[i], view.arrange(moved, "o") | view.arrange(weights, "qkv"))
            assert not torch.allclose(logits(model, batch), before, atol=1e-4)  # not one side alone
            write(stack.layers[i], view.arrange(weights))


@KINDS
def test_a_planted_order_is_found_and_the_group_merges_into_the_sublayer(kind):
    """Layers that hold the same heads, in other orders, and read the same: nothing is added."""
    model, count = build(kind), len(find_stacks(build(kind)))
    for stack in find_stacks(model).values():
        first = stack.attentions()[0].read()
        for i, view in enumerate(stack.attentions()):
            own = view.read()
            moved = permute_heads(first, draw_order(view, i)) if i else first
            write(stack.layers[i], view.arrange(moved))
            for name, _ in stack.layers[i].named_parameters():
                if name not in view.arrange(own):
                    write(stack.layers[i], {name: stack.layers[0].get_parameter(name)})
    still = apply_plan(model, Plan())
    for stack in find_stacks(still).values():  # without what layers add, all read the same
        for layer in stack.layers:
            outs = [m for n, m in layer.named_modules() if n.rpartition(".")[2] in OUTS]
            for parameter in (p for module in outs for p in module.parameters()):
                parameter.data.zero_()
    batches = [batch_of(kind, n=30, seed=seed) for seed in range(4)]
    plan = find_method("attention").list_plans(model, (LAYERS - 1) * count, Evidence())[0]
    orders = align_attention(model, plan.attention, collect_heads(still, batches, 400))
    small = apply_patch(model, Patch(plan, merge_attention(model, plan, orders)))
    for name, stack in find_stacks(model).items():
        first = stack.attentions()[0].read()
        for i, view in enumerate(stack.attentions()):
            found = permute_heads(view.read(), orders[name][i]) if i else view.read()
            assert torch.equal(found.W_v, first.W_v) and torch.equal(found.W_q, first.W_q)
        merged = find_stacks(small)[name].attentions()
        assert all(torch.equal(view.read().W_o, first.W_o) for view in merged)
    batch = batch_of(kind)
    torch.testing.assert_close(logits(small, batch), logits(model, batch))


@KINDS
def test_only_values_and_outputs_are_shared_and_a_merged_model_loads(kind, tmp_path):
    model, batch = build(kind), batch_of(kind)
    batches = [batch_of(kind, n=30, seed=seed) for seed in range(4)]
    stacks = find_stacks(model)
    evidence = Evidence(calibration=lambda: batches)
    found = find_method("attention")
    plan = found.list_plans(model, 2 * len(stacks), evidence)[1]
    patch = found.make(model, plan, evidence)
    small = apply_patch(model, patch)
    again = load(save(small, tmp_path / "small"))
    for one in (small, again):
        for stack in find_stacks(one).values():
            views = stack.attentions()
            for projection in ("W_v", "W_o"):
                assert len({id(view.module(projection)) for view in views}) == LAYERS - 2
            for projection in ("W_q", "W_k"):
                assert len({id(view.module(projection)) for view in views}) == LAYERS
    assert len(find_shared_modules(again)) >= 2 * len(stacks)
    assert count_untied(again) == count_parameters(model) > count_parameters(again)
    assert torch.equal(logits(again, batch), logits(small, batch))
    assert again.ffmerge_plan == patch.plan.to_json()
    assert "shared attention sublayers" in (tmp_path / "small" / "README.md").read_text()
    untied = untie(again)
    assert torch.equal(logits(untied, batch), logits(small, batch))
    assert count_parameters(untied) == count_parameters(model)


@KINDS
def test_the_average_of_one_sublayer_is_itself(kind):
    weights = next(iter(find_stacks(build(kind)).values())).attentions()[0].read()
    same = average_values([weights] * 3)
    for name, value in vars(weights).items():
        assert value is None or torch.equal(getattr(same, name), value)


def test_the_order_found_is_the_best_of_all():
    """Two heads of three dimensions: all 2 × 6 × 6 orders are tried."""
    from itertools import permutations, product

    x, y = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0))
    C = correlate(x, y)
    order = match_heads(C, n_heads=2, n_groups=2)

    def total(heads, dims):
        columns = HeadOrder(torch.tensor(heads), torch.tensor(dims)).rows()["o"]
        return float(C[torch.arange(6), columns].sum())

    every = product(permutations(range(2)), product(permutations(range(3)), repeat=2))
    best = max(total(heads, dims) for heads, dims in every)
    assert total(order.heads.tolist(), order.dims.tolist()) == pytest.approx(best)


@pytest.mark.parametrize("method", FUSED)
def test_values_inside_one_matrix_are_refused_in_a_sentence(method):
    model, evidence = make_model("gpt2"), make_evidence("gpt2")
    plan = find_method(method).list_plans(model, 1, evidence)[0]
    with pytest.raises(ValueError, match="queries, keys and values in one matrix") as error:
        find_method(method).make(model, plan, evidence)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="layer 0 of the decoder has queries, keys and values"):
        apply_plan(model, Plan(attention={"decoder": (window(0, 1),)}))


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("olmo2", KEYS, BIASED),  # norms over all heads at once
        ("gpt_oss", KEYS, None),  # a mixture of experts anyhow
        ("t5", {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2}, STRANGE),
        (
            "mpnet",  # a position bias for every head, outside the layers
            {k: v for k, v in KEYS.items() if k != "num_key_value_heads"},
            BIASED,
        ),
    ],
)
def test_what_knows_one_head_from_another_is_refused(kind, settings, reason):
    model = make(kind, **settings)
    if reason is None:
        with pytest.raises(ValueError, match="mixture of experts"):
            find_stacks(model)
        return
    for stack in find_stacks(model).values():
        with pytest.raises(ValueError, match=rf"self-attention of layer 0 of the \w+ has {reason}"):
            stack.attentions()


def test_attention_that_is_shared_is_not_shared_again():
    small = apply_plan(make_model("bert"), Plan(attention={"encoder": (window(0, 1),)}))
    with pytest.raises(ValueError, match="attention sublayers of the encoder share already"):
        apply_plan(small, Plan({"encoder": (window(2, 3),)}))


def test_attention_and_whole_layers_go_together():
    model = make_model("bert")
    plan = Plan(dropped={"encoder": (1,)}, attention={"encoder": (window(0, 2),)}, groups={})
    small = apply_plan(model, plan)  # which counts what it promised
    views = find_stacks(small)["encoder"].attentions()
    assert views[0].module("W_v") is views[1].module("W_v") is not views[2].module("W_v")


def test_a_plan_says_which_attention_is_shared():
    groups = {"encoder": (window(0, 2),), "decoder": (window(0, 2),)}
    plan = Plan(attention=groups)
    assert Plan.from_json(plan.to_json()) == plan and list(plan.to_json()) == ["attention"]
    assert str(plan) == str(Plan(groups, attention=groups)) == str(Plan(groups)) == "0-2"
    other = Plan(groups, attention={"encoder": (window(1, 3),)})
    assert str(other) == "encoder 0-2, decoder 0-2, encoder attention 1-3"
    assert other.anchored("last").attention["encoder"][0].anchor == 3
