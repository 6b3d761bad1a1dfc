from dataclasses import fields

import pytest
import torch
from families import LAYERS, MAKERS, logits, make_batch, make_model
from torch import nn

from ffmerge.activations import collect_features
from ffmerge.alignment import align, load_pairs, pair_name, save_pairs
from ffmerge.merging import average, count_parameters, merge, merge_aligned, permute
from ffmerge.selection import find_anchor, list_pairs
from ffmerge.sublayers import find_stacks
from study.variants import compress


def full_windows(model):
    return {name: (0, len(stack) - 1) for name, stack in find_stacks(model).items()}


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
    merged = merge(model, full_windows(model), shared, method=method)
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
    windows = {name: (1, 3) for name in find_stacks(model)}
    merged = merge(model, windows, method="vanilla")
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
    merged = merge(model, {"decoder": (1, 2)}, features)
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
    last = merge(model, {n: (1, 3) for n in features}, features, anchor="last")
    for stack in find_stacks(model).values():  # the same sublayers in reverse order
        weights = [ff.read() for ff in stack.sublayers]
        for ff, w in zip(stack.sublayers, reversed(weights), strict=True):
            ff.write(w)
    backwards = {name: layers[::-1] for name, layers in features.items()}
    windows = {n: (LAYERS - 4, LAYERS - 2) for n in features}
    first = merge(model, windows, backwards, anchor="first")
    for name in features:
        a = find_stacks(last)[name].sublayers[1].read()
        b = find_stacks(first)[name].sublayers[LAYERS - 4].read()
        for field in fields(a):
            if getattr(a, field.name) is not None:
                torch.testing.assert_close(getattr(a, field.name), getattr(b, field.name))


def test_anchor_middle_aligns_both_neighbours_to_the_middle():
    model = make_model("vit")
    features = collect_features(model, [make_batch("vit", n=40)], tokens=1)
    merged = merge(model, {"encoder": (1, 3)}, features, anchor="middle")
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
    merged = merge(model, {name: (0, 2) for name in stacks}, method="vanilla")
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
    model = merge(
        make_model(family), {n: (1, 3) for n in find_stacks(make_model(family))}, method="vanilla"
    )
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
    pairs = {
        pair_name(name, a, b): align(x[a], x[b])
        for name, x in features.items()
        for a, b in list_pairs([(0, 3)], ["first", "middle", "last"])
    }
    save_pairs(pairs, tmp_path / "pairs.safetensors")
    pairs = load_pairs(tmp_path / "pairs.safetensors")
    actual = compress(model, "permute", (0, 3), pairs, anchor)
    expected = merge(model, dict.fromkeys(features, (0, 3)), features, anchor=anchor)
    for a, b in zip(actual.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_pair_without_a_permutation_is_refused():
    with pytest.raises(ValueError, match="the pair of sublayers 0 and 1 of the decoder has no"):
        compress(make_model("gpt2"), "permute", (0, 2), {}, "first")


def test_the_model_that_is_merged_stays_as_it_is():
    model, batch = make_model("olmo"), make_batch("olmo")
    before = logits(model, batch)
    merge(model, {"decoder": (0, 3)}, method="vanilla")
    assert torch.equal(before, logits(model, batch))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"windows": {"decoder": (2, 4)}}, "window 2-4 is not valid in a stack of 4 layers"),
        ({"windows": {"decoder": (2, 2)}}, "window 2-2 is not valid .* 2 or more layers"),
        ({"windows": {"decoder": (3, 1)}}, "window 3-1 is not valid"),
        ({"windows": {"encoder": (0, 1)}}, "stack 'encoder' is unknown; valid are decoder"),
        ({"method": "permutate"}, "method 'permutate' is unknown; valid are vanilla, permute"),
        ({"method": "permute", "anchor": "second"}, "anchor 'second' is unknown; valid are first"),
        ({"method": "permute"}, "features are missing"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_sentence(kwargs, message):
    arguments = {"windows": {"decoder": (0, 1)}, "method": "vanilla"} | kwargs
    with pytest.raises(ValueError, match=message):
        merge(make_model("gpt2"), **arguments)


def test_a_window_of_sublayers_of_different_width_is_refused():
    model = make_model("vit")
    wide = model.vit.layers[2].mlp
    wide.fc1, wide.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
    assert find_anchor((1, 3)) == 1
    with pytest.raises(ValueError, match=r"different kind or width d_ff \(24, 32, 24\)"):
        merge_aligned(model, {"encoder": (1, 3)}, {})
    merge_aligned(model, {"encoder": (0, 1)}, {})
