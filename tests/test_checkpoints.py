import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
import transformers
from families import MAKERS, logits, make_batch, make_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from ffmerge.checkpoints import find_shared_modules, load, save, shared_keys, size_on_disk
from ffmerge.compression import merge
from ffmerge.files import replacing
from ffmerge.patches import Plan, apply_plan, count_parameters
from ffmerge.saving.exporting import export, untie
from ffmerge.saving.sharing import find_untold_widths
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


def test_sharing_that_is_gone_is_still_told_by_the_configuration(tmp_path):
    _, small = merged("gpt2")
    (save(small, tmp_path / "small") / "sharing.json").unlink()
    again = load(tmp_path / "small")
    assert shared_keys(again) == shared_keys(small)
    assert torch.equal(logits(again, make_batch("gpt2")), logits(small, make_batch("gpt2")))


def write_as_before(small, folder):
    """The format of earlier releases: the base's own configuration, and sharing.json beside it."""
    apart = untie(copy.deepcopy(small))
    state = {k: v for k, v in apart.state_dict().items() if k not in shared_keys(small)}
    apart.save_pretrained(folder, state_dict=state)
    groups, widths = find_shared_modules(small), find_untold_widths(small)
    with safe_open(folder / "model.safetensors", "pt") as file:
        told = [groups, *([widths] if widths else []), sorted(file.keys())]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    content = {"groups": groups} | ({"neurons": widths} if widths else {}) | {"digest": digest}
    (folder / "sharing.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("family", MAKERS)
def test_folders_of_earlier_releases_load_as_they_did(family, tmp_path):
    model, small = merged(family)
    again = load(write_as_before(small, tmp_path / "old"))
    assert torch.equal(logits(again, make_batch(family)), logits(small, make_batch(family)))
    assert shared_keys(again) == shared_keys(small)
    narrow = apply_plan(model, Plan(neurons={name: (24, 1, 7, 7) for name in find_stacks(model)}))
    again = load(write_as_before(narrow, tmp_path / "narrow"))
    assert torch.equal(logits(again, make_batch(family)), logits(narrow, make_batch(family)))
    (tmp_path / "old" / "sharing.json").unlink()
    with pytest.raises(ValueError, match=r"lacks weights .* missing is .* valid is") as error:
        load(tmp_path / "old")
    assert "\n" not in str(error.value)


def test_an_untouched_model_is_a_plain_folder(tmp_path):
    model, _ = merged("gpt2")
    save(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "plain")
    plain = {f.name: f.read_bytes() for f in (tmp_path / "plain").iterdir()}
    ours = {f.name: f.read_bytes() for f in (tmp_path / "ours").iterdir()}
    assert ours == plain | {"sharing.json": b"[]\n"}


def test_the_plan_and_the_card_travel_with_the_model(tmp_path):
    model, small = merged("gpt2")
    made = {"method": "vanilla", "base": "gpt2-tiny", "measured": {"loss | nats": 3.25}}
    folder = save(small, tmp_path / "small", **made)
    card = (folder / "README.md").read_text()
    for said in ("vanilla", "gpt2-tiny", "3.25", "decoder: 1-3", "AutoModelForCausalLM", "import"):
        assert said in card, said
    assert f"{count_parameters(small):,}" in card and f"{count_parameters(model):,}" in card
    assert load(folder).ffmerge_plan == {
        "groups": {"decoder": [{"layers": [1, 2, 3], "anchor": 1}]}
    }
    for plan in (Plan(dropped={"decoder": (1,)}), Plan(neurons={"decoder": (7,) * 4})):
        folder = save(apply_plan(model, plan), tmp_path / "small")
        assert load(folder).ffmerge_plan == plan.to_json()
        again = AutoModelForCausalLM.from_pretrained(folder)  # plain: nothing to register
        assert torch.equal(
            logits(again, make_batch("gpt2")), logits(load(folder), make_batch("gpt2"))
        )
        assert "import ffmerge" not in (folder / "README.md").read_text()


def test_a_configuration_with_fewer_layers_than_the_weights_is_refused(tmp_path):
    make_model("llama").save_pretrained(tmp_path / "llama")
    make_model("gpt2").transformer.save_pretrained(tmp_path / "gpt2")  # as the hub's: bare names
    for name, key, first in (
        ("llama", "num_hidden_layers", "model.layers.3"),
        ("gpt2", "n_layer", "h.3"),
    ):
        file = tmp_path / name / "config.json"
        config = json.loads(file.read_text()) | {key: 3}
        file.write_text(json.dumps(config))
        for architecture in (config["architectures"], ["GPT2LMHeadModel"])[: 1 + (name == "gpt2")]:
            file.write_text(json.dumps(config | {"architectures": list(architecture)}))
            with pytest.raises(ValueError, match=rf"unexpected is {first}\.\w"):
                load(tmp_path / name)


def test_large_models_are_written_in_shards(tmp_path):
    _, small = merged("marian")
    folder = save(small, tmp_path / "small", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    again = load(folder)
    assert torch.equal(logits(again, make_batch("marian")), logits(small, make_batch("marian")))
    save(small, folder)  # in one file again
    assert len(list(folder.glob("model*"))) == 1


@pytest.mark.parametrize("kind", ["a shard gone", "a stray file", "no index", "torn index"])
def test_damaged_shards_are_refused_in_one_sentence(kind, tmp_path):
    _, small = merged("marian")
    folder = save(small, tmp_path / "small", max_shard_size="20KB")
    index, first = folder / "model.safetensors.index.json", min(folder.glob("*.safetensors"))
    if kind == "a shard gone":
        first.unlink()
    elif kind == "a stray file":
        save_file({"a": torch.ones(2)}, folder / "model-00099-of-00099.safetensors")
    elif kind == "no index":
        index.unlink()
    else:
        index.write_text(index.read_text()[:-9])
    with pytest.raises((ValueError, OSError)) as error:
        load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    if kind == "a shard gone":
        assert str(error.value) == f"{folder} lacks {first.name}; valid are all files as saved"


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


def make_untold():
    """Models whose configuration has no number for d_ff, or one that means something else too."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    pictures = sizes | {"image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    words = transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=4, n_heads=2, hidden_dim=32, max_position_embeddings=64
    )
    yield transformers.DistilBertForMaskedLM(words), {"input_ids": torch.arange(18).view(2, 9)}
    batch = {"pixel_values": torch.randn(2, 3, 28, 28)}
    yield transformers.Dinov2Model(transformers.Dinov2Config(**pictures)), batch
    config = transformers.SiglipVisionConfig(intermediate_size=32, **pictures)
    yield transformers.SiglipVisionModel(config), batch  # whose pooling head is as wide


@pytest.mark.parametrize("which", range(3))
def test_widths_that_no_configuration_can_say_are_recorded_and_load(which, tmp_path):
    model, batch = list(make_untold())[which]
    small = apply_plan(model.eval(), Plan(neurons={"encoder": (7,) * 4}))
    again = load(save(small, tmp_path / "small"))
    assert {ff.d_ff for ff in find_stacks(again)["encoder"].sublayers} == {7}
    assert torch.equal(small(**batch)[0], again(**batch)[0])
    with pytest.raises(ValueError, match="and a configuration that says it, so valid is"):
        export(tmp_path / "small", tmp_path / "plain")


def test_such_widths_are_recorded_whoever_saves(tmp_path):
    model, batch = next(make_untold())
    small = apply_plan(model.eval(), Plan(neurons={"encoder": (7,) * 4}))
    inner = save(small.distilbert, tmp_path / "inner")
    small.save_pretrained(tmp_path / "plainly")
    untied = save(untie(copy.deepcopy(small)), tmp_path / "untied")
    for folder in (tmp_path / "plainly", untied):
        assert torch.equal(small(**batch)[0], load(folder)(**batch)[0])
    assert torch.equal(small.distilbert(**batch)[0], load(inner)(**batch)[0])


def test_a_pruned_part_put_back_is_saved_with_its_widths(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "patch_size": 4}
    sizes |= {"num_attention_heads": 2, "image_size": 8}
    text = sizes | {"model_type": "llama", "vocab_size": 50, "intermediate_size": 40}
    config = transformers.LlavaConfig(
        vision_config=sizes | {"model_type": "clip_vision_model"}, text_config=text
    )
    whole = transformers.LlavaForConditionalGeneration(config).eval()
    part = apply_plan(whole.model.language_model, Plan(neurons={"decoder": (20,) * 2}))
    whole.model.language_model = part
    again, ids = load(save(whole, tmp_path / "whole")), torch.arange(12).view(2, 6)
    assert torch.equal(whole(input_ids=ids)[0], again(input_ids=ids)[0])


def test_widths_that_a_configuration_does_say_leave_a_plain_folder_plain(tmp_path):
    """Gemma 4 may have two widths in a stack, and says so."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "vocab_size": 50}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    sizes |= {"global_head_dim": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 2}
    sizes |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
    config = transformers.Gemma4TextConfig(**sizes, use_double_wide_mlp=True)
    model = transformers.Gemma4ForCausalLM(config)
    assert [ff.d_ff for ff in find_stacks(model)["decoder"].sublayers] == [24, 24, 48, 48]
    assert find_untold_widths(model) == {}
    told = json.loads((save(model, tmp_path / "plain") / "config.json").read_text())
    assert told["model_type"] == "gemma4_text"


def test_layers_are_not_dropped_where_something_else_reads_them_all():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.EsmConfig(vocab_size=50, pad_token_id=1, num_hidden_layers=4, **sizes)
    model = transformers.EsmForMaskedLM(config)
    with pytest.raises(ValueError, match=r"contact_head.* has another shape; valid"):
        apply_plan(model, Plan(dropped={"encoder": (1,)}))
