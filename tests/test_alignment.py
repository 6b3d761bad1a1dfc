import numpy as np
import pytest
import torch
from families import MAKERS, make_batch, make_model

from ffmerge.activations import collect_features, collect_outputs
from ffmerge.alignment import RunningCorrelation, align, correlate, invert
from ffmerge.sublayers import find_stacks


def features(n=200, d=12, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_a_planted_permutation_is_recovered_exactly():
    x = features()
    planted = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    y = x[:, planted] * 3 + 5 + 0.1 * features(seed=2)
    p = align(x, y)
    assert torch.equal(planted[p], torch.arange(12))
    assert p.dtype == torch.int64 and torch.equal(align(y, x), invert(p))


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_streamed_correlation_equals_numpy(chunk, mean):
    x, y = features() + mean, features(d=9, seed=1) * 4 - mean
    y[:, 2] += x[:, 5]
    expected = np.corrcoef(x.double().numpy().T, y.double().numpy().T)[:12, 12:]
    C = correlate(x, y, chunk=chunk)
    assert C.shape == (12, 9)
    # features of mean 1000 and deviation 1 have lost four of float32's seven digits already
    np.testing.assert_allclose(C.numpy(), expected, atol=1e-6 if mean == 0 else 1e-4)


def test_dead_neurons_correlate_zero_and_never_nan():
    x, y = features(), features(seed=1)
    x[:, 3], y[:, 0], y[:, 4] = 0.1, 0.0, -1e4
    C = correlate(x, y, chunk=33)
    assert (C[3] == 0).all() and (C[:, 0] == 0).all() and (C[:, 4] == 0).all()
    assert C.isfinite().all() and (C[0, 1:4] != 0).all()
    assert sorted(align(x, y).tolist()) == list(range(12))


@pytest.mark.parametrize("family", MAKERS)
def test_features_of_padded_batches_equal_those_of_the_tokens_alone(family):
    model = make_model(family)
    padded = make_batch(family, padded=True)
    collected = collect_features(model, [padded], tokens=10**6)
    if family == "vit":  # images have no padding: every position counts
        assert len(collected["encoder"][0]) == 6 * (4 + 1)
        return
    for name, layers in collected.items():
        mask = padded["attention_mask"].bool()
        if family == "marian" and name == "decoder":
            mask = padded["labels"] != -100
        assert len(layers) == len(find_stacks(model)[name])
        assert all(len(x) == mask.sum() for x in layers)
    one = {key: value[-1:] for key, value in padded.items()}
    if family == "marian":
        one["labels"] = one["labels"][one["labels"] != -100][None]
    keep = one["attention_mask"].bool()
    one |= {k: one[k][keep][None] for k in ("input_ids", "attention_mask")}
    for name, layers in collect_features(model, [one], tokens=1).items():
        for i, x in enumerate(layers):
            torch.testing.assert_close(x, collected[name][i][-len(x) :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", MAKERS)
def test_correlation_of_many_padded_batches_equals_numpy(family):
    model = make_model(family)
    batches = [make_batch(family, n=5, seed=s, padded=s % 2 == 1) for s in range(6)]
    for layers in collect_features(model, batches, tokens=10**6).values():
        x, y = layers[0], layers[2]
        expected = np.corrcoef(x.numpy().T, y.numpy().T)[: x.shape[1], x.shape[1] :]
        np.testing.assert_allclose(correlate(x, y, chunk=17).numpy(), expected, atol=1e-5)


def test_plain_features_are_preactivations_and_gated_ones_the_product():
    for family in ("gpt2", "olmo"):
        model, batch = make_model(family), make_batch(family)
        ff = find_stacks(model)["decoder"].sublayers[2]
        x = collect_features(model, [batch], tokens=1)["decoder"][2]
        seen = {}
        ff.module("W_in").register_forward_hook(lambda m, a, out, s=seen: s.update(up=out))
        if ff.is_gated:
            ff.module("W_gate").register_forward_hook(lambda m, a, out, s=seen: s.update(gate=out))
        model(**batch)
        expected = seen["up"]
        if ff.is_gated:
            expected = torch.nn.functional.silu(seen["gate"]) * seen["up"]
        torch.testing.assert_close(x, expected.flatten(0, 1).detach())


def test_collection_stops_at_the_tokens_asked_for():
    model = make_model("gpt2")
    batches = (make_batch("gpt2", n=2, seed=s) for s in range(100))  # 20 tokens each
    assert len(collect_features(model, batches, tokens=50)["decoder"][0]) == 60
    assert next(batches) is not None


def test_fewer_tokens_than_asked_for_are_told():
    with pytest.warns(UserWarning, match="batches hold 60 tokens and 1000 were asked for"):
        collect_features(make_model("gpt2"), [make_batch("gpt2")], tokens=1000)


def test_outputs_are_taken_before_the_residual_sum():
    model, batch = make_model("gpt2"), make_batch("gpt2")
    ff, attention = collect_outputs(model, [batch], tokens=1)
    block = model.transformer.h[1]
    hidden = model(**batch, output_hidden_states=True).hidden_states
    residual = block.attn(block.ln_1(hidden[1]))[0]
    torch.testing.assert_close(attention["decoder"][1], residual.flatten(0, 1).detach())
    both = ff["decoder"][1] + attention["decoder"][1] + hidden[1].flatten(0, 1)
    torch.testing.assert_close(both, hidden[2].flatten(0, 1).detach(), rtol=1e-4, atol=1e-4)


def test_a_vits_attention_outputs_are_those_of_its_output_projection():
    model, batch = make_model("vit"), make_batch("vit")
    _, attention = collect_outputs(model, [batch], tokens=1)
    seen = {}
    layer = model.vit.layers[2].attention
    layer.register_forward_hook(lambda m, args, out: seen.update(out=out[0]))
    model(**batch)
    torch.testing.assert_close(attention["encoder"][2], seen["out"].flatten(0, 1).detach())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad):
    model, batch = make_model("vit"), make_batch("vit")
    find_stacks(model)["encoder"].sublayers[1].module("W_in").bias.data[0] = bad
    with pytest.raises(ValueError, match="FF sublayer 1 of the encoder hold NaN or infinite"):
        collect_features(model, [batch])
    x = features()
    x[3, 3] = bad
    with pytest.raises(ValueError, match="x_other holds NaN or infinite"):
        correlate(features(), x)


def test_fewer_than_two_tokens_are_refused():
    with pytest.raises(ValueError, match="1 tokens; valid are two or more"):
        correlate(features(n=1), features(n=1))
    with pytest.raises(ValueError, match="0 tokens; valid are two or more"):
        RunningCorrelation().value()
    one = make_batch("gpt2", n=1, length=1)
    with pytest.raises(ValueError, match="1 tokens for the decoder; valid are two or more"):
        collect_features(make_model("gpt2"), [one])
    with pytest.raises(ValueError, match="0 tokens for the decoder"):
        collect_features(make_model("gpt2"), [])


def test_sublayers_of_different_width_cannot_be_aligned():
    with pytest.raises(ValueError, match="of one width"):
        align(features(d=12), features(d=9))
