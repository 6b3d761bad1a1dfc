import json
from pathlib import Path

import pytest
import torch
import transformers
from families import MAKERS, logits, make_batch, make_model

from ffmerge.checkpoints import load, save, shared_keys, size_on_disk
from ffmerge.compression import merge
from ffmerge.files import replacing
from ffmerge.patches import Plan, apply_plan, count_parameters
from ffmerge.sublayers import find_stacks


def merged(family):
    model = make_model(family)
    return model, merge(model, dict.fromkeys(find_stacks(model), "1-3"), method="vanilla")


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
    small = apply_plan(model, Plan(dropped=dict.fromkeys(find_stacks(model), (1, 2))))
    again = load(save(small, tmp_path / "small"))
    assert torch.equal(logits(small, make_batch(family)), logits(again, make_batch(family)))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model in .*nowhere; valid is a folder"):
        load(tmp_path / "nowhere")


def altered(groups):
    """What careless hands make of a list of groups."""
    yield "one group less", groups[:1]
    yield "reversed", [group[::-1] for group in groups]
    yield "one layer more", [[*group, group[0].replace("h.1.", "h.0.")] for group in groups]
    yield "other layers", [[name.replace("h.1.", "h.0.") for name in g] for g in groups]
    yield "unknown names", [["transformer.h.1.mlp.c_fc", "../../etc/passwd"]]
    yield "whole layers", [["transformer.h.1", "transformer.h.2"]]


def test_sharing_that_was_altered_is_refused(tmp_path):
    _, small = merged("gpt2")
    sharing = save(small, tmp_path / "small") / "sharing.json"
    content = json.loads(sharing.read_text())
    assert len(content["groups"]) == 2
    texts = [json.dumps(content | {"groups": groups}) for _, groups in altered(content["groups"])]
    verbosity = transformers.logging.get_verbosity()
    for text in (*texts, "", "{}", "[1]", sharing.read_text()[:40]):
        sharing.write_text(text)
        with pytest.raises(ValueError, match=r"sharing.json was altered; valid is") as error:
            load(tmp_path / "small")
        assert "\n" not in str(error.value)
    assert transformers.logging.get_verbosity() == verbosity


def test_weights_that_no_sharing_explains_are_refused(tmp_path):
    _, small = merged("gpt2")
    (save(small, tmp_path / "small") / "sharing.json").unlink()
    with pytest.raises(ValueError, match=r"lacks weights .*mlp.c_proj"):
        load(tmp_path / "small")


def test_code_that_comes_with_a_checkpoint_is_never_run(tmp_path):
    model, _ = merged("gpt2")
    save(model, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": names}))
    (tmp_path / "base" / "evil.py").write_text("raise SystemExit('run')\n")
    assert torch.equal(
        logits(load(tmp_path / "base"), make_batch("gpt2")), logits(model, make_batch("gpt2"))
    )


def test_what_was_there_survives_an_error_and_a_kill(tmp_path, monkeypatch):
    folder = tmp_path / "small"
    with replacing(folder) as partial:
        partial.mkdir()
        (partial / "first").write_text("1")

    def fill():
        with replacing(folder) as partial:
            partial.mkdir()
            (partial / "second").write_text("2")

    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        fill()
    assert [f.name for f in folder.iterdir()] == ["first"]
    monkeypatch.setattr(Path, "replace", rename)
    folder.rename(tmp_path / "small.old")  # a kill between the two renames
    fill()
    assert [f.name for f in folder.iterdir()] == ["second"] and list(tmp_path.iterdir()) == [folder]


def test_saving_replaces_a_folder_completely(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "stale.safetensors").write_bytes(b"old")
    save(merged("vit")[1], tmp_path / "small")
    assert not (tmp_path / "small" / "stale.safetensors").exists()
