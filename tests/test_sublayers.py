import pytest
import torch
from families import LAYERS, MAKERS, logits, make_batch, make_model
from torch import nn

from ffmerge.patches import Plan, apply_plan
from ffmerge.sublayers import check_stacks, find_stacks
from ffmerge.weights import permute


def drop_layers(model, layers):
    return apply_plan(model, Plan(dropped=dict.fromkeys(find_stacks(model), layers)))


@pytest.mark.parametrize("family", MAKERS)
def test_every_stack_and_sublayer_is_found(family):
    stacks = find_stacks(make_model(family))
    expected = {"vit": ["encoder"], "bert": ["encoder"], "marian": ["encoder", "decoder"]}
    assert list(stacks) == expected.get(family, ["decoder"])
    for stack in stacks.values():
        assert len(stack) == LAYERS and len(stack.attention_outputs()) == LAYERS
        for ff in stack.sublayers:
            weights = ff.read()
            assert weights.W_in.shape == (24, 16) and weights.W_out.shape == (16, 24)
            assert ff.is_gated == (family in ("olmo", "llama")) == (weights.W_gate is not None)
            assert (weights.b_in is None) == (family in ("olmo", "llama"))


@pytest.mark.parametrize("family", MAKERS)
def test_permuting_one_sublayer_leaves_the_logits_unchanged(family):
    model, batch = make_model(family), make_batch(family)
    before = logits(model, batch)
    for stack in find_stacks(model).values():
        ff = stack.sublayers[1]
        p = torch.randperm(ff.d_ff, generator=torch.Generator().manual_seed(1))
        assert not torch.equal(p, torch.arange(ff.d_ff))
        ff.write(permute(ff.read(), p))
    after = logits(model, batch)
    assert (after - before).norm() <= 1e-5 * before.norm()


@pytest.mark.parametrize("family", MAKERS)
def test_reading_and_writing_back_changes_nothing(family):
    model, batch = make_model(family), make_batch(family)
    before = logits(model, batch)
    for stack in find_stacks(model).values():
        for ff in stack.sublayers:
            ff.write(ff.read())
    assert torch.equal(before, logits(model, batch))


@pytest.mark.parametrize("family", MAKERS)
def test_a_dropped_layer_is_gone_from_model_and_configuration(family):
    model = make_model(family)
    small = drop_layers(model, (1, 2))
    assert all(len(stack) == LAYERS - 2 for stack in find_stacks(small).values())
    assert logits(small, make_batch(family)).isfinite().all()
    rebuilt = type(small)(small.config)  # the configuration alone makes a model of that depth
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in small.state_dict().items()
    }
    assert all(len(stack) == LAYERS for stack in find_stacks(model).values())


def test_generation_with_a_cache_survives_a_drop():
    small = drop_layers(make_model("gpt2"), (1, 2))
    batch = make_batch("gpt2", n=2)
    kwargs = {"max_new_tokens": 6, "do_sample": False}
    with_cache = small.generate(**batch, **kwargs, use_cache=True)
    assert torch.equal(with_cache, small.generate(**batch, **kwargs, use_cache=False))


def test_another_depth_or_width_than_expected_is_refused():
    model = make_model("vit")
    stacks = find_stacks(model)
    check_stacks(stacks, {"encoder": LAYERS})
    with pytest.raises(ValueError, match=r"layers is {'encoder': 12}.*valid is .*{'encoder': 4}"):
        check_stacks(stacks, {"encoder": 12})
    model.vit.layers[2].mlp.fc1, model.vit.layers[2].mlp.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
    with pytest.raises(ValueError, match=r"d_ff \[24, 32\]; valid is one width"):
        check_stacks(find_stacks(model), {"encoder": LAYERS})


def test_a_model_without_sublayers_is_refused():
    with pytest.raises(ValueError, match="no FF sublayers that can be found"):
        find_stacks(nn.Sequential(nn.Linear(3, 3)))


@pytest.mark.parametrize("layers", [(2, 4), (-1, 1), tuple(range(LAYERS))])
def test_a_drop_outside_the_stack_or_of_everything_is_refused(layers):
    with pytest.raises(ValueError, match=r"layers .* cannot be dropped from the decoder; valid"):
        drop_layers(make_model("gpt2"), layers)
