import json

import pytest
import torch
from families import MAKERS, logits, make_batch, make_model

from ffmerge.checkpoints import load, save, shared_keys, size_on_disk
from ffmerge.merging import count_parameters, merge
from ffmerge.pruning import drop_layers
from ffmerge.sublayers import find_stacks


def merged(family):
    model = make_model(family)
    return model, merge(model, {name: (1, 3) for name in find_stacks(model)}, method="vanilla")


@pytest.mark.parametrize("family", MAKERS)
def test_a_merged_model_loads_bitwise_equal_and_still_shared(family, tmp_path):
    model, small = merged(family)
    save(model, tmp_path / "base")
    again = load(save(small, tmp_path / "small"))
    batch = make_batch(family)
    assert torch.equal(logits(small, batch), logits(again, batch))
    assert shared_keys(again) == shared_keys(small) != {}
    assert count_parameters(again) == count_parameters(small) < count_parameters(model)
    saved = size_on_disk(tmp_path / "base") - size_on_disk(tmp_path / "small")
    removed = 4 * (count_parameters(model) - count_parameters(small))
    # the rest of the difference is the header of the file, which names fewer tensors
    assert removed <= saved <= removed + 150 * len(shared_keys(small))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("family", MAKERS)
def test_a_dropped_model_loads_bitwise_equal(family, tmp_path):
    model = make_model(family)
    small = drop_layers(model, {name: (1, 2) for name in find_stacks(model)})
    again = load(save(small, tmp_path / "small"))
    assert torch.equal(logits(small, make_batch(family)), logits(again, make_batch(family)))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model in .*nowhere; `make repro`"):
        load(tmp_path / "nowhere")


def test_a_file_that_lacks_weights_is_refused(tmp_path):
    _, small = merged("gpt2")
    save(small, tmp_path / "small")
    sharing = tmp_path / "small" / "sharing.json"
    groups = json.loads(sharing.read_text())
    assert len(groups) == 2
    sharing.write_text(json.dumps(groups[:1]))
    with pytest.raises(ValueError, match=r"lacks weights .*mlp.c_proj"):
        load(tmp_path / "small")


def test_saving_replaces_a_folder_completely(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "stale.safetensors").write_bytes(b"old")
    save(merged("vit")[1], tmp_path / "small")
    assert not (tmp_path / "small" / "stale.safetensors").exists()
