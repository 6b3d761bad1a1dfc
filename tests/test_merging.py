from dataclasses import fields

import pytest
import torch
from families import LAYERS, MAKERS, logits, make_batch, make_model
from torch import nn

from ffmerge.activations import collect_features
from ffmerge.alignment import align
from ffmerge.compression import merge
from ffmerge.groups import Group, list_pairs, window
from ffmerge.methods import Evidence, find_method
from ffmerge.pairs import load_pairs, pair_name, save_pairs
from ffmerge.patches import Plan, apply_patch, count_parameters
from ffmerge.sublayers import find_stacks
from ffmerge.weights import average, permute


def whole_stacks(model):
    return {name: range(len(stack)) for name, stack in find_stacks(model).items()}


@pytest.mark.parametrize("method", ["vanilla", "permute"])
@pytest.mark.parametrize("family", MAKERS)
def test_merging_identical_sublayers_returns_the_model(family, method):
    model, batch = make_model(family), make_batch(family)
    for stack in find_stacks(model).values():
        for i, ff in enumerate(stack.sublayers[1:]):
            weights = stack.sublayers[0].read()
            if method == "permute":  # identical but for the order of their neurons
                generator = torch.Generator().manual_seed(i)
                weights = permute(weights, torch.randperm(ff.d_ff, generator=generator))
            ff.write(weights)
    # neurons are matched on what they do on one and the same input
    shared = {
        name: [planted_features(ff) for ff in stack.sublayers]
        for name, stack in find_stacks(model).items()
    }
    merged = merge(model, whole_stacks(model), shared, method=method)
    before, after = logits(model, batch), logits(merged, batch)
    assert (after - before).norm() <= 1e-5 * before.norm()
    if method == "vanilla":
        assert torch.equal(before, after)


def planted_features(ff):
    x = torch.randn(100, 16, generator=torch.Generator().manual_seed(3))
    return x @ ff.read().W_in.T


@pytest.mark.parametrize("family", MAKERS)
def test_vanilla_is_the_mean_of_the_weights(family):
    model = make_model(family)
    groups = dict.fromkeys(find_stacks(model), "1-3")
    merged = merge(model, groups, method="vanilla")
    for name, stack in find_stacks(model).items():
        for projection in stack.sublayers[0].names:
            modules = [ff.module(projection) for ff in stack.sublayers[1:4]]
            for ff in find_stacks(merged)[name].sublayers[1:4]:
                actual = ff.module(projection)
                torch.testing.assert_close(actual.weight, sum(m.weight for m in modules) / 3)
                if actual.bias is not None:
                    torch.testing.assert_close(actual.bias, sum(m.bias for m in modules) / 3)


def test_permute_averages_conv1d_weights_in_the_aligned_order():
    model, batch = make_model("gpt2"), make_batch("gpt2")
    features = collect_features(model, [batch], tokens=1)
    merged = merge(model, {"decoder": "1-2"}, features)
    p = align(features["decoder"][1], features["decoder"][2])
    a, b = model.transformer.h[1].mlp, model.transformer.h[2].mlp
    m = merged.transformer.h[2].mlp  # Conv1D keeps (n_inputs, n_outputs)
    torch.testing.assert_close(m.c_fc.weight, (a.c_fc.weight + b.c_fc.weight[:, p]) / 2)
    torch.testing.assert_close(m.c_fc.bias, (a.c_fc.bias + b.c_fc.bias[p]) / 2)
    torch.testing.assert_close(m.c_proj.weight, (a.c_proj.weight + b.c_proj.weight[p]) / 2)
    torch.testing.assert_close(m.c_proj.bias, (a.c_proj.bias + b.c_proj.bias) / 2)


@pytest.mark.parametrize("family", MAKERS)
def test_anchor_last_equals_anchor_first_of_the_reversed_stack(family):
    model = make_model(family)
    features = collect_features(model, [make_batch(family, n=40)], tokens=1)
    last = merge(model, dict.fromkeys(features, "1-3"), features, anchor="last")
    for stack in find_stacks(model).values():  # the same sublayers in reverse order
        weights = [ff.read() for ff in stack.sublayers]
        for ff, w in zip(stack.sublayers, reversed(weights), strict=True):
            ff.write(w)
    backwards = {name: layers[::-1] for name, layers in features.items()}
    groups = dict.fromkeys(features, window(LAYERS - 4, LAYERS - 2))
    first = merge(model, groups, backwards, anchor="first")
    for name in features:
        a = find_stacks(last)[name].sublayers[1].read()
        b = find_stacks(first)[name].sublayers[LAYERS - 4].read()
        for field in fields(a):
            if getattr(a, field.name) is not None:
                torch.testing.assert_close(getattr(a, field.name), getattr(b, field.name))


def test_anchor_middle_aligns_both_neighbours_to_the_middle():
    model = make_model("vit")
    features = collect_features(model, [make_batch("vit", n=40)], tokens=1)
    merged = merge(model, {"encoder": "1-3"}, features, anchor="middle")
    x, sublayers = features["encoder"], find_stacks(model)["encoder"].sublayers
    expected = average(
        [permute(sublayers[i].read(), align(x[2], x[i])) for i in (1, 3)] + [sublayers[2].read()]
    )
    actual = find_stacks(merged)["encoder"].sublayers[3].read()
    torch.testing.assert_close(actual.W_in, expected.W_in)
    torch.testing.assert_close(actual.b_in, expected.b_in)


@pytest.mark.parametrize("family", MAKERS)
def test_tying_removes_exactly_k_minus_one_sublayers(family):
    model = make_model(family)
    stacks = find_stacks(model)
    merged = merge(model, dict.fromkeys(stacks, "0-2"), method="vanilla")
    ff = next(iter(stacks.values())).sublayers[0]
    per_ff = sum(p.numel() for name in ff.names for p in ff.module(name).parameters())
    removed = 2 * per_ff * len(stacks)
    assert count_parameters(model) - count_parameters(merged) == removed
    assert model.get_memory_footprint() - merged.get_memory_footprint() == 4 * removed
    for stack in find_stacks(merged).values():
        for projection in ff.names:
            modules = {id(s.module(projection)) for s in stack.sublayers[:3]}
            assert len(modules) == 1
            assert id(stack.sublayers[3].module(projection)) not in modules


@pytest.mark.parametrize("family", MAKERS)
def test_tied_sublayers_are_still_tied_after_an_optimizer_step(family):
    model = make_model(family)
    model = merge(model, dict.fromkeys(find_stacks(model), "1-3"), method="vanilla")
    batch = make_batch(family)
    n_parameters = count_parameters(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == n_parameters
    before = next(iter(find_stacks(model).values())).sublayers[1].read().W_in
    model(**batch).logits.square().mean().backward()
    optimizer.step()
    stack = next(iter(find_stacks(model).values()))
    assert not torch.equal(before, stack.sublayers[1].read().W_in)
    assert torch.equal(stack.sublayers[1].read().W_in, stack.sublayers[3].read().W_in)
    assert count_parameters(model) == n_parameters


@pytest.mark.parametrize("anchor", ["first", "middle", "last"])
def test_permutations_of_pairs_serve_every_anchor_inverted_where_needed(anchor, tmp_path):
    model = make_model("marian")
    features = collect_features(model, [make_batch("marian", n=40)], tokens=1)
    anchored = [window(0, 3, which) for which in ("first", "middle", "last")]
    pairs = {
        pair_name(name, a, b): align(x[a], x[b])
        for name, x in features.items()
        for a, b in list_pairs(anchored)
    }
    save_pairs(pairs, tmp_path / "pairs.safetensors")
    pairs = load_pairs(tmp_path / "pairs.safetensors")
    plan = Plan(dict.fromkeys(features, (window(0, 3, anchor),)))
    patch = find_method("permute").make(model, plan, Evidence(pairs))
    actual = apply_patch(model, patch)
    expected = merge(model, dict.fromkeys(features, "0-3"), features, anchor=anchor)
    for a, b in zip(actual.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_pair_without_a_permutation_is_refused():
    plan = Plan({"decoder": (window(0, 2),)})
    with pytest.raises(ValueError, match="sublayers 0 and 1 of the decoder have no permutation"):
        find_method("permute").make(make_model("gpt2"), plan, Evidence({}))


def test_the_model_that_is_merged_stays_as_it_is():
    model, batch = make_model("olmo"), make_batch("olmo")
    before = logits(model, batch)
    merge(model, {"decoder": "0-3"}, method="vanilla")
    assert torch.equal(before, logits(model, batch))


def test_several_groups_of_one_stack_are_merged_each_for_itself():
    model = make_model("llama")
    features = collect_features(model, [make_batch("llama", n=40)], tokens=1)
    both = merge(model, {"decoder": ["0-1", (2, 3)]}, features)
    first, second = (merge(model, {"decoder": g}, features) for g in ("0-1", [2, 3]))
    sublayers = find_stacks(both)["decoder"].sublayers
    assert sublayers[0].module("W_in") is sublayers[1].module("W_in")
    assert sublayers[1].module("W_in") is not sublayers[2].module("W_in")
    for i, one in ((0, first), (3, second)):
        expected = find_stacks(one)["decoder"].sublayers[i].read()
        assert torch.equal(sublayers[i].read().W_in, expected.W_in)


def test_sublayers_that_are_no_neighbours_can_share():
    model = make_model("vit")
    merged = merge(model, {"encoder": (0, 2)}, method="vanilla")
    sublayers, old = (find_stacks(m)["encoder"].sublayers for m in (merged, model))
    assert sublayers[0].module("W_out") is sublayers[2].module("W_out")
    assert torch.equal(sublayers[1].read().W_in, old[1].read().W_in)
    mean = (old[0].read().W_in + old[2].read().W_in) / 2
    torch.testing.assert_close(sublayers[2].read().W_in, mean)


@pytest.mark.parametrize("groups", ["1-2", "2-3", "0-1"])
def test_a_merged_model_is_not_merged_again(groups):
    merged = merge(make_model("gpt2"), {"decoder": "1-2"}, method="vanilla")
    with pytest.raises(ValueError, match="share already; valid is an uncompressed model"):
        merge(merged, {"decoder": groups}, method="vanilla")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"groups": {"decoder": "2-4"}}, "group 2-4 is not valid in the decoder of 4 layers"),
        ({"groups": {"decoder": "2-2"}}, "valid are two or more layers, ascending"),
        ({"groups": {"decoder": "3-1"}}, "valid are two or more layers, ascending"),
        ({"groups": {"decoder": (3, 1)}}, "valid are two or more layers, ascending"),
        ({"groups": {"decoder": (-2, 1)}}, "valid are layers from 0 on"),
        ({"groups": {"decoder": (1.0, 2)}}, r"group \(1.0, 2\) is not valid; valid are layers"),
        ({"groups": {"decoder": (True, 2)}}, r"group \(True, 2\) is not valid"),
        ({"groups": {"decoder": 3}}, "group 3 is not valid; valid are layers"),
        ({"groups": {"decoder": None}}, "group None is not valid"),
        ({"groups": {"decoder": "a-b"}}, "layers 'a-b' are not valid; valid are `3-7`"),
        ({"groups": {"decoder": ["0-2", "2-3"]}}, "groups 0-2 and 2-3 of the decoder both hold"),
        ({"groups": {"encoder": "0-1"}}, "stack 'encoder' is unknown; valid are decoder"),
        ({"groups": {}}, "groups are {}; valid are such as"),
        ({"groups": "0-1"}, "groups are '0-1'; valid are such as"),
        (
            {"method": "permutate"},
            "method 'permutate' is unknown; valid are .*permute, pool, .*vanilla",
        ),
        (
            {"method": "drop"},
            "method 'drop' does not share; valid are attention, .*copy, .*permute, .*vanilla",
        ),
        ({"anchor": "second"}, "anchor 'second' is unknown; valid are first"),
        ({"method": "permute"}, "features of the decoder are missing"),
        ({"method": "permute", "features": {}}, "features of the decoder are missing"),
        ({"method": "permute", "features": {"decoder": []}}, r"are missing \(there are 0\)"),
        ({"groups": {"decoder": []}}, "valid are two or more layers"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_sentence(kwargs, message):
    arguments = {"groups": {"decoder": "0-1"}, "method": "vanilla"} | kwargs
    with pytest.raises(ValueError, match=message) as error:
        merge(make_model("gpt2"), **arguments)
    assert "\n" not in str(error.value)


def test_a_group_of_sublayers_of_different_width_is_refused():
    model = make_model("vit")
    wide = model.vit.layers[2].mlp
    wide.fc1, wide.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
    with pytest.raises(ValueError, match=r"FF sublayers 1-3 of the encoder have d_ff \[24, 32\]"):
        merge(model, {"encoder": "1-3"}, method="vanilla")
    merge(model, {"encoder": "0-1"}, method="vanilla")


def test_groups_read_as_they_are_written():
    assert str(Group((3, 4, 5), 3)) == "3-5" and str(Group((3, 5), 5)) == "3,5"
    assert window(3, 7) == Group((3, 4, 5, 6, 7), 3) and window(3, 7).others == (4, 5, 6, 7)
    assert [window(4, 7).anchored(a).anchor for a in ("first", "middle", "last")] == [4, 5, 7]
