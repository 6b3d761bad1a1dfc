"""What is announced of memory, and the lean ways to gather evidence."""

import pytest
import torch
from families import MAKERS, make_batch, make_model

import ffmerge
from ffmerge.alignment import LazyPairs, align
from ffmerge.cli.search import find_best, gather_evidence
from ffmerge.memory import estimate_features, estimate_memory, estimate_moments
from ffmerge.moments import collect_moments


@pytest.mark.parametrize("family", MAKERS)
def test_half_of_the_precision_keeps_the_features(family):
    model, batches = make_model(family), [make_batch(family, padded=True, seed=s) for s in (0, 1)]
    whole = ffmerge.collect_features(model, batches, 60)
    half = ffmerge.collect_half(model, batches, 60)
    for name, layers in whole.items():
        for x, y in zip(layers, half[name], strict=True):
            assert y.dtype == torch.bfloat16 and len(y) == min(60, len(x))
            torch.testing.assert_close(y.float(), x[:60], rtol=2**-8, atol=1e-6)


def test_half_of_the_precision_finds_a_planted_permutation():
    x, p = torch.randn(300, 24), torch.randperm(24)
    y = torch.empty_like(x)
    y[:, p] = x + 5  # a mean that is large beside the spread
    assert torch.equal(align(x.bfloat16(), y.bfloat16()), p)


def test_what_is_announced_is_what_is_kept():
    model, batches = make_model("llama"), [make_batch("llama")]
    for dtype, features in (
        (torch.float32, ffmerge.collect_features(model, batches, 60)),
        (torch.bfloat16, ffmerge.collect_half(model, batches, 60)),
    ):
        kept = sum(x.numel() * x.element_size() for x in features["decoder"])
        assert kept == estimate_features(model, 60, dtype)
    moments = collect_moments(model, batches, 60)["decoder"]
    kept = sum(m.covariance.numel() * m.covariance.element_size() for m in moments)
    assert 2 * kept == estimate_moments(model)  # sums and covariances side by side
    parts = estimate_memory(model, ("permutations", "calibration"), 60)
    assert parts["the model"] == 4 * ffmerge.count_parameters(model)
    assert {"features", "second moments"} <= set(parts)
    assert "features" not in estimate_memory(model, (), 60)


def test_pairs_are_aligned_when_they_are_asked_for_and_as_ever():
    model, batches = make_model("gpt2"), [make_batch("gpt2", n=20)]
    features = ffmerge.collect_features(model, batches, 200)
    pairs = LazyPairs(features)
    assert len(pairs) == 0 and "decoder.0.3" in pairs and "decoder.3.0" not in pairs
    layers = features["decoder"]
    assert torch.equal(pairs["decoder.1.2"], align(layers[1], layers[2]))
    assert list(pairs) == ["decoder.1.2"]


@pytest.mark.parametrize("method", ["permute", "refit", "groups", "pool", "neurons_obs_budget"])
def test_the_lean_search_finds_what_compress_finds(method, monkeypatch):
    """With features of one precision, so that the same permutations come out."""
    monkeypatch.setattr("ffmerge.memory.HALF", torch.float32)
    model, batches = make_model("gpt2"), [make_batch("gpt2", n=20, seed=s) for s in range(3)]

    def score(small):
        with torch.no_grad():
            return float(small(**batches[0]).logits.abs().mean())

    evidence = gather_evidence(model, method, batches, 400)
    best = find_best(model, method, 1, evidence, score)
    options = {"evaluate": score, "higher_is_better": False, "tokens": 400}
    small = ffmerge.compress(model, method, 1, batches, **options)
    for one, two in zip(best.model.parameters(), small.parameters(), strict=True):
        assert torch.equal(one, two)
