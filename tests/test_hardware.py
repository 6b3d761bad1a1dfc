"""What needs a GPU or the hub; left out of `make test`: pytest -m gpu, pytest -m network."""

import pytest
import torch
from families import MAKERS, logits, make_batch, make_model

from ffmerge.activations import collect_features
from ffmerge.checkpoints import load
from ffmerge.compression import merge
from ffmerge.sublayers import find_stacks


@pytest.mark.gpu
@pytest.mark.parametrize("family", MAKERS)
def test_merging_on_a_gpu_equals_merging_on_the_cpu(family):
    model, batch = make_model(family), make_batch(family)
    features = collect_features(model, [batch], tokens=1)
    windows = dict.fromkeys(features, "1-3")
    expected = logits(merge(model, windows, features), batch)
    on_gpu = merge(model.cuda(), windows, features)
    actual = logits(on_gpu, {key: value.cuda() for key, value in batch.items()}).cpu()
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_features_collected_on_a_gpu_equal_those_of_the_cpu():
    model, batch = make_model("gpt2"), make_batch("gpt2", padded=True)
    expected = collect_features(model, [batch], tokens=1)["decoder"]
    actual = collect_features(model.cuda(), [batch], tokens=1)["decoder"]
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


@pytest.mark.network
def test_the_papers_vit_has_the_sublayers_that_params_yaml_says():
    (stack,) = find_stacks(load("google/vit-base-patch16-224")).values()
    assert (stack.name, len(stack), stack.sublayers[0].d_ff) == ("encoder", 12, 3072)
