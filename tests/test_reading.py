"""What strangers' files hold: marks, lines and pictures that are not as in the manual."""

import json
from types import SimpleNamespace

import pytest
import torch
from families import make_model
from PIL import Image
from strangers import make_text, make_tokenizer, save_stranger, write_images, write_rows, write_text
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    RobertaConfig,
    RobertaForMaskedLM,
)

import ffmerge
from ffmerge.__main__ import main
from ffmerge.cli.opening import open_model
from ffmerge.cli.reading import read_images, read_rows
from ffmerge.cli.splits import find_limit, read_splits
from ffmerge.patches import Plan, apply_plan


def fail(capsys, model, out, *options, remove="1/4"):
    """The one sentence that a command ends with."""
    arguments = ["compress", model, "--remove", remove, "--out", out, *options]
    capsys.readouterr()  # what came before
    assert main([str(argument) for argument in arguments]) == 1
    *warnings, told = capsys.readouterr().err.strip().splitlines()
    assert all(line.startswith("warning: ") for line in warnings)
    assert not out.exists() and "does not know" not in told
    return told


def test_rows_may_begin_with_a_mark_and_hold_any_character(tmp_path):
    """U+2028 is a line's end to Python, and none to JSON."""
    texts = ["one\u2028two\x85three", "four"]
    lines = "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    (tmp_path / "rows.jsonl").write_bytes(lines.encode("utf-8-sig"))
    rows = read_rows(str(tmp_path / "rows.jsonl"), "text", 0)
    assert sorted(row["text"] for row in rows) == sorted(texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": null}\n', "a row whose 'text' is 'None', a NoneType"),
        (b'{"text": ["word1"]}\n', "a row whose 'text' is \"['word1']\", a list"),
        ('{"text": "caf\u00e9"}'.encode("latin-1"), "is not UTF-8"),
    ],
)
def test_rows_that_hold_no_text_name_their_file(content, message, tmp_path, capsys):
    model, file = save_stranger("gpt2", tmp_path / "base"), tmp_path / "rows.jsonl"
    file.write_bytes(content)
    told = fail(capsys, model, tmp_path / "small", "--data", file)
    assert message in told and str(file) in told


def test_pictures_that_are_torn_or_deep_are_named(tmp_path, capsys):
    model = save_stranger("vit", tmp_path / "base")
    torn, deep = tmp_path / "torn.png", tmp_path / "deep.png"
    (whole,) = write_images(tmp_path / "pictures", n=1).rglob("*.png")
    torn.write_bytes(whole.read_bytes()[:90])
    Image.new("I;16", (12, 12), 40_000).save(deep)
    for file, message in ((torn, "cannot be read"), (deep, "more than 8 bits a channel")):
        told = fail(capsys, model, tmp_path / "small", "--data", file)
        assert f"{file} " in told and message in told
    assert [image.size for image in read_images(str(whole), "image", 0)] == [(12, 12)]


def test_options_that_would_do_nothing_are_refused(tmp_path, capsys):
    model, text = save_stranger("gpt2", tmp_path / "base"), write_text(tmp_path / "notes.txt")
    out = tmp_path / "small"
    assert "--data is ''" in fail(capsys, model, out, "--data", "")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("words " * 9)
    twice = ("--data", tmp_path / "notes", "--data", tmp_path / "notes" / "a.txt")
    assert "both hold" in fail(capsys, model, out, *twice)
    told = fail(capsys, model, out, "--data", text, "--target", "en")
    assert "--target is 'en', and this model never reads one text and writes another" in told
    with pytest.raises(SystemExit):
        main(["compress", "m", "--remove", "1/4", "--data", "d", "--out", "o", "--seed", "-1"])
    assert "valid are whole numbers from 0 on" in capsys.readouterr().err


def test_a_model_of_one_layer_is_told_that_it_has_one(tmp_path, capsys):
    model = save_stranger("gpt2", tmp_path / "base")
    apply_plan(make_model("gpt2"), Plan(dropped={"decoder": (1, 2, 3)})).save_pretrained(model)
    text = write_text(tmp_path / "notes.txt")
    told = fail(capsys, model, tmp_path / "small", "--data", text, remove="1/2")
    assert "has one layer" in told and "valid are two or more" in told


def test_positions_behind_that_of_padding_are_fewer(tmp_path):
    """RoBERTa counts from padding_idx + 1 on: 514 positions read 512 tokens."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=40, intermediate_size=24, max_position_embeddings=34, **sizes)
    model = RobertaForMaskedLM(config).eval()
    assert find_limit(model) == 32 and find_limit(make_model("gpt2")) == 32
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    text = write_text(tmp_path / "notes.txt")
    splits = read_splits(open_model(str(tmp_path)), [str(text)], 200, 50)
    assert splits.check[0]["input_ids"].shape[1] == 32
    model(**splits.check[0])  # it can read that many


def test_a_folder_of_pickled_weights_has_a_size(tmp_path, capsys):
    model, folder = make_model("gpt2"), save_stranger("gpt2", tmp_path / "base")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert main(["inspect", str(folder)]) == 0
    n_bytes = (folder / "pytorch_model.bin").stat().st_size
    assert f"{n_bytes:,} bytes" in capsys.readouterr().out


def test_several_columns_of_pairs_are_texts(tmp_path, capsys):
    model = save_stranger("marian", tmp_path / "base")
    rows = write_rows(tmp_path / "pairs.jsonl", zh=12)
    options = ["--data", rows, "--column", "zh", "--target", "en"]
    assert "has no column 'en'; valid are zh" in fail(capsys, model, tmp_path / "small", *options)
    assert ffmerge.load(model).config.is_encoder_decoder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "half \\ud800"}\n', "half a character"),
        ('{"text": ' + "[" * 100_000 + "\n", "line 1 of"),
    ],
)
def test_rows_that_no_tokenizer_and_no_parser_reads_are_told(content, message, tmp_path, capsys):
    model, file = save_stranger("gpt2", tmp_path / "base"), tmp_path / "rows.jsonl"
    file.write_text(content)
    assert message in fail(capsys, model, tmp_path / "small", "--data", file)


def test_a_picture_that_is_a_bomb_is_named(tmp_path, capsys, monkeypatch):
    model = save_stranger("vit", tmp_path / "base")
    (whole,) = write_images(tmp_path / "pictures", n=1).rglob("*.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    told = fail(capsys, model, tmp_path / "small", "--data", whole)
    assert f"{whole} cannot be read" in told and "decompression bomb" in told


def test_columns_and_contexts_that_nothing_has_are_refused(tmp_path, capsys):
    out, text = tmp_path / "small", write_text(tmp_path / "notes.txt")
    words, pictures = (save_stranger(k, tmp_path / k) for k in ("gpt2", "vit"))
    images = write_images(tmp_path / "pictures")
    rows = write_rows(tmp_path / "rows.jsonl", n=200, body=20)
    for model, data, option in (
        (words, text, ("--column", "body")),
        (pictures, images, ("--column", "body")),
        (pictures, images, ("--context", "16")),
    ):
        told = fail(capsys, model, out, "--data", data, *option)
        assert f"{option[0]} is given and does nothing with these data" in told
    assert "has no column ''; valid are body" in fail(
        capsys, words, out, "--data", rows, "--column", ""
    )
    opened = open_model(str(words))  # of several sources one is enough
    splits = read_splits(opened, [str(text), str(rows)], 200, 50, column="body", context=16)
    assert sum(splits.tokens) >= 300


def test_pairs_of_which_one_side_is_empty_teach_nothing(tmp_path):
    opened = open_model(str(save_stranger("marian", tmp_path / "base")))
    rows, options = tmp_path / "pairs.jsonl", {"column": "zh", "target": "en"}
    empty = "".join(json.dumps({"zh": "", "en": "word1"}) + "\n" for _ in range(9))
    rows.write_text(empty)
    with pytest.raises(ValueError, match=r"gives too few pairs \(0\)"):
        read_splits(opened, [str(rows)], 20, 5, **options)
    rows.write_text(empty + "".join(f'{{"zh": "word{i}", "en": "word{i}"}}\n' for i in range(9)))
    assert sum(read_splits(opened, [str(rows)], 20, 5, **options).tokens) == 9


@pytest.mark.parametrize(
    ("names", "limit"),
    [
        ({"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 48}, 48),
        ({"max_seq_len": 40}, 40),
        ({"max_position_embeddings": -1}, None),
        ({}, None),
    ],
)
def test_limits_have_several_names(names, limit):
    model = make_model("gpt2")
    model.config = SimpleNamespace(**names)
    assert find_limit(model) == limit


@pytest.mark.parametrize(
    ("option", "value"),
    [("--tokens", "9" * 5000), ("--remove", "1e-99999999"), ("--remove", "1/0"), ("--remove", "²")],
)
def test_numbers_that_are_none_are_told_at_once(option, value, capsys):
    options = {"--remove": "1/4", "--data": "d", "--out": "o"} | {option: value}
    with pytest.raises(SystemExit):
        main(["compress", "m", *(part for pair in options.items() for part in pair)])
    assert "valid are" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_texts_in_another_encoding_are_named(encoding, tmp_path, capsys):
    model, file = save_stranger("gpt2", tmp_path / "base"), tmp_path / "notes.txt"
    file.write_bytes(("caf\u00e9 " + make_text(1500)).encode(encoding))
    told = fail(capsys, model, tmp_path / "small", "--data", file)
    assert f"{file} is not UTF-8" in told and "valid are texts in UTF-8" in told


def test_what_is_no_file_and_what_a_mac_leaves_is_no_data(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "._notes.txt").write_bytes(b"\xff\x00")
    write_text(tmp_path / "folder.txt" / "notes.txt", 5)
    rows = list(read_rows(str(tmp_path), "text", 0))
    assert [len(row["text"].split()) for row in rows] == [5]


def save_llava(folder):
    """A model that reads pictures and texts, of which text reaches one half."""
    size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=8, patch_size=4, num_hidden_layers=4, **size)
    text = LlamaConfig(vocab_size=40, num_hidden_layers=4, **size)
    config = LlavaConfig(vision_config=vision, text_config=text)
    LlavaForConditionalGeneration(config).save_pretrained(folder)


def save_asker(folder):
    """A head whose outputs are no tokens."""
    size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = BertConfig(vocab_size=40, num_hidden_layers=4, **size)
    BertForQuestionAnswering(config).save_pretrained(folder)


def save_broken(folder):
    model = make_model("gpt2")
    with torch.no_grad():
        model.transformer.h[2].mlp.c_fc.weight[0, 0] = float("nan")
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (save_llava, "these data never reach the vision of the model; valid is the part"),
        (save_asker, "does not run on these data"),
        (save_broken, "the uncompressed model has inf here; valid are finite weights"),
    ],
)
def test_models_that_cannot_be_scored_on_the_data_say_so_at_once(make, message, tmp_path, capsys):
    make(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    text = write_text(tmp_path / "notes.txt")
    options = ["--data", text, "--context", "16", "--method", "vanilla"]
    assert message in fail(capsys, tmp_path / "base", tmp_path / "small", *options, remove="1/2")
    assert "memory" not in capsys.readouterr().out


def test_a_method_that_wants_a_loss_and_pictures_all_alike_are_told(tmp_path, capsys):
    model = save_stranger("vit", tmp_path / "base")
    images, same = write_images(tmp_path / "pictures"), tmp_path / "same"
    same.mkdir()
    for i in range(20):
        Image.new("L", (12, 12), 9).save(same / f"{i}.png")
    taylor = ["--data", images, "--method", "neurons_taylor"]
    assert "this model has no loss" in fail(capsys, model, tmp_path / "small", *taylor)
    assert "outputs are all the same" in fail(capsys, model, tmp_path / "small", "--data", same)


def test_nothing_is_written_into_the_model_that_is_read(tmp_path, capsys):
    model, text = save_stranger("gpt2", tmp_path / "base"), write_text(tmp_path / "notes.txt")
    assert "which is read" in fail(capsys, model, model / "small", "--data", text)
    (tmp_path / "out" / ".ffmerge-save" / "new").mkdir(parents=True)  # as a kill leaves it
    options = ["--remove", "1/4", "--data", str(text), "--context", "16", "--method", "vanilla"]
    assert main(["compress", str(model), "--out", str(tmp_path / "out"), *options]) == 0
    (tmp_path / "out" / "compression.json").write_text("[]")
    assert main(["inspect", str(tmp_path / "out")]) == 1
    assert "is not what `compress` wrote" in capsys.readouterr().err


def test_a_torn_gguf_is_no_model(tmp_path, capsys):
    (tmp_path / "torn.GGUF").write_bytes(b"GGUF\x03\x00")
    text = write_text(tmp_path / "notes.txt")
    told = fail(capsys, tmp_path / "torn.GGUF", tmp_path / "small", "--data", text)
    assert "cannot be opened" in told and "valid are a hub id" in told
