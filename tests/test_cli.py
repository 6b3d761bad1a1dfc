"""`python -m ffmerge` on what strangers bring: each kind of model and data, and each error."""

import shutil
import subprocess
import sys
from fractions import Fraction
from itertools import chain

import pytest
import torch
from families import FUSED, make_model
from strangers import (
    make_text,
    save_stranger,
    write_data,
    write_gguf,
    write_images,
    write_rows,
    write_text,
)

import ffmerge
from ffmerge.__main__ import build_parser, main
from ffmerge.catalogue import list_methods
from ffmerge.checkpoints import find_shared_modules, size_on_disk
from ffmerge.cli.commands import ORIGIN
from ffmerge.cli.opening import open_model
from ffmerge.cli.search import count_removed
from ffmerge.cli.splits import read_splits, take_in_turn
from ffmerge.files import read_json
from ffmerge.sublayers import find_stacks


def compress(model, out, *options, remove="1/4"):
    arguments = ["compress", model, "--remove", remove, "--out", out, *options]
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("method", ["neurons_obs_refit", "permute"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "marian", "vit"])
def test_a_stranger_compresses_a_model(family, method, tmp_path, capsys):
    model = save_stranger(family, tmp_path / "base")
    data = write_data(family, tmp_path)
    small = tmp_path / "small"
    assert compress(model, small, *data, "--method", method) == 0
    told = capsys.readouterr().out
    metric = "reconstruction error" if family in ("bert", "vit") else "perplexity"
    assert f"quality   {metric}" in told and "memory    at most about" in told
    assert told.index("memory") < told.index("done")  # announced before
    again, base = ffmerge.load(small), ffmerge.load(model)
    assert ffmerge.count_parameters(again) < ffmerge.count_parameters(base)
    assert again.dtype == base.dtype
    origin = read_json(small / ORIGIN)
    n_stacks = len(find_stacks(base))
    assert origin["removed"] == f"{n_stacks} FF sublayers" and origin["base"] == str(model)
    assert len(origin["candidates"]) == (3 if method == "permute" else 0)  # windows of 2 in 4
    if method == "permute":
        assert origin["candidates"][origin["layers"]] == min(origin["candidates"].values())
    else:
        assert origin["before"] != origin["after"]
    assert main(["inspect", str(small)]) == 0
    told = capsys.readouterr().out
    share = f"{origin['layers']} share one FF" if method == "permute" else "no FF is shared"
    assert share in told and f"{ffmerge.count_parameters(again):,} parameters" in told
    assert f"by {method}" in told and metric in told


FRESH = """
import sys, torch, ffmerge
from itertools import chain
from transformers import AutoModelForCausalLM
from ffmerge.checkpoints import find_shared_modules
again = AutoModelForCausalLM.from_pretrained(sys.argv[1])
torch.save(dict(again.named_parameters()), sys.argv[2])
written = again.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
print(written.shape[1], *sorted(chain.from_iterable(find_shared_modules(again))))
"""


def test_what_the_command_made_is_shared_equal_and_writes_in_a_fresh_process(tmp_path):
    """With plain AutoModel; and its file is smaller by what tying promised."""
    model, small = save_stranger("llama", tmp_path / "base"), tmp_path / "small"
    assert compress(model, small, *write_data("llama", tmp_path), "--method", "permute") == 0
    again, base = ffmerge.load(small), ffmerge.load(model)
    command = [sys.executable, "-c", FRESH, str(small), str(tmp_path / "seen.pt")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    seen, mine = torch.load(tmp_path / "seen.pt"), dict(again.named_parameters())
    assert seen.keys() == mine.keys() and all(torch.equal(seen[k], p) for k, p in mine.items())
    shared = sorted(chain.from_iterable(find_shared_modules(again)))
    assert int(told[0]) == 7 and told[1:] == shared and len(shared) == 6  # three projections of two
    freed = size_on_disk(model) - size_on_disk(small)
    assert freed == pytest.approx(
        4 * (ffmerge.count_parameters(base) - ffmerge.count_parameters(again)), rel=0.01, abs=2000
    )


@pytest.mark.parametrize("method", list_methods())
def test_every_method_has_a_command(method, tmp_path, capsys):
    family = "llama" if method in FUSED else "gpt2"
    model = save_stranger(family, tmp_path / "base")
    data = write_data(family, tmp_path)
    remove = "1/2" if method.startswith("wanda") else "1/4"
    small = tmp_path / "small"
    assert compress(model, small, *data, "--method", method, remove=remove) == 0
    assert ffmerge.load(small).config.model_type == family


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_gguf_file_is_a_model_too(tmp_path):
    model = write_gguf(tmp_path / "tiny.gguf")
    text = write_text(tmp_path / "notes.txt", 200)
    options = ["--data", text, "--context", "16"]
    assert compress(model, tmp_path / "small", *options, "--method", "permute") == 0
    small = ffmerge.load(tmp_path / "small")
    assert small.config.model_type == "llama" and small.dtype == torch.float32
    assert len({id(ff.module("W_in")) for ff in find_stacks(small)["decoder"].sublayers}) == 3


def test_a_checkpoint_keeps_its_dtype_and_two_runs_agree(tmp_path):
    folder = save_stranger("llama", tmp_path / "base")
    make_model("llama").to(torch.bfloat16).save_pretrained(folder)
    data = write_data("llama", tmp_path)
    for name in ("one", "two"):
        assert compress(folder, tmp_path / name, *data) == 0
    one, two = (ffmerge.load(tmp_path / name) for name in ("one", "two"))
    assert one.dtype == torch.bfloat16
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


def test_what_cannot_be_is_told_in_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = save_stranger("gpt2", tmp_path / "base")
    text = write_text(tmp_path / "notes.txt")
    short = write_text(tmp_path / "short.txt", 40)
    rows = write_rows(tmp_path / "rows.jsonl", body=20)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "word1"}\nno json\n')
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    out = tmp_path / "small"
    for arguments, message in [
        ((tmp_path / "nothing", out, "--data", text), "cannot be opened"),
        (("no/model", out, "--data", text), "HF_HUB_OFFLINE is set; valid are"),
        ((model, out, "--data", "no/texts"), "HF_HUB_OFFLINE is set; valid are"),
        ((bare, out, "--data", text), "has no tokenizer"),
        ((model, model, "--data", text), "exists; valid is a new or an empty folder"),
        ((model, out, "--data", short), "gives too few texts of 32 tokens (1); valid are 5 or"),
        ((model, out, "--data", tmp_path / "no.txt"), "holds no file to read"),
        ((model, out, "--data", rows), "has no column 'text'; valid are body"),
        ((model, out, "--data", broken), "of 2 is not a row"),
        ((model, out, "--data", text, "--context", 1), "--context is 1; valid are 2 and more"),
        ((model, tmp_path / ".." / "x", "--data", text), "leads through '..'; valid is a new or"),
        ((model, text / "x", "--data", text), "cannot be written in"),
    ]:
        message = message.replace("of 2", f"2 of {broken}")
        assert compress(*arguments) == 1
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1 and told[0].startswith("error: ") and message in told[0]
        assert not out.exists()
    assert compress(model, out, "--data", text, remove="1/3") == 1
    assert "1/3 of 4 FF sublayers is 1.333; valid is a whole number" in capsys.readouterr().err


def test_what_no_one_has_foreseen_is_one_sentence_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ffmerge.cli.compressing.read_splits", lambda *_, **__: 1 / 0)
    model, text = save_stranger("gpt2", tmp_path / "base"), write_text(tmp_path / "notes.txt")
    assert compress(model, tmp_path / "small", "--data", text) == 1
    told = capsys.readouterr().err.strip()
    assert told == "error: compress met what it does not know (ZeroDivisionError: division by zero)"


@pytest.mark.parametrize(
    ("family", "data", "message"),
    [("marian", "text", "--target is missing"), ("vit", "text", "holds no file to read")],
)
def test_data_must_be_what_the_model_reads(family, data, message, tmp_path, capsys):
    model = save_stranger(family, tmp_path / "base")
    text = write_text(tmp_path / "notes.txt")
    assert compress(model, tmp_path / "small", "--data", text) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--remove", "3/2"], "valid are such as 1/3 and 0.25"),
        (["--remove", "some"], "valid are such as 1/3 and 0.25"),
        (
            ["--remove", "1/4", "--method", "magic"],
            "method 'magic' is unknown; valid are attention",
        ),
        (["--remove", "1/4", "--tokens", "0"], "valid are whole numbers from 1 on"),
        ([], "required: --remove"),
    ],
)
def test_a_command_that_is_not_understood_exits_with_2(options, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["compress", "m", "--data", "d", "--out", "o", *options])
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_too_little_calibration_is_a_warning_with_both_numbers(tmp_path, capsys):
    model = save_stranger("gpt2", tmp_path / "base")
    text = write_text(tmp_path / "notes.txt", 400)
    options = ["--data", text, "--context", "16"]
    assert compress(model, tmp_path / "small", *options) == 0
    assert "240 tokens calibrate 24 neurons" in (told := capsys.readouterr().err)
    assert "600 or more are advised" in told
    assert compress(model, tmp_path / "drop", *options, "--method", "drop") == 0
    assert "advised" not in capsys.readouterr().err  # it needs none


def test_a_data_set_of_the_hub_is_read_by_its_name(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    model = save_stranger("gpt2", tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl", text=30)
    local = datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train")
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return local.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("ffmerge.hub._ask", lambda *told: None)  # the hub has it
    options = ["--data", "someone/texts:english", "--context", "16"]
    assert compress(model, tmp_path / "small", *options) == 0
    expected = ("someone/texts", "english"), {"split": "train", "streaming": True}
    assert asked == [expected]


def test_inspect_and_export_want_a_model(tmp_path, capsys, monkeypatch):
    model = save_stranger("gpt2", tmp_path / "base")
    assert main(["inspect", str(tmp_path)]) == 1
    assert "no model in" in capsys.readouterr().err
    assert main(["inspect", str(model)]) == 0  # of others too
    assert "not told" in capsys.readouterr().out
    done = []
    monkeypatch.setattr(ffmerge, "export", lambda *paths: done.append(paths), raising=False)
    assert main(["export", str(model), str(tmp_path / "plain")]) == 0
    assert done == [(model, tmp_path / "plain")]
    assert main(["export", str(model), str(model)]) == 1
    assert "exists" in capsys.readouterr().err


def test_methods_are_listed_with_their_results(capsys):
    assert main(["methods"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n{name}  (" in told for name in list_methods())
    assert "a third removed: vit-glyphs" in told


def test_help_is_of_what_there_is():
    text = build_parser().format_help()
    assert all(name in text for name in ("compress", "inspect", "export", "methods"))


@pytest.mark.parametrize(
    ("method", "share", "count"),
    [("permute", "1/2", 4), ("permute", "3/4", 6), ("drop", "1/4", 2), ("wanda", "1/2", 50)],
)
def test_a_share_is_a_whole_number_in_every_stack(method, share, count):
    assert count_removed(make_model("marian"), method, Fraction(share)) == count


@pytest.mark.parametrize("share", ["1/8", "1/3", "7/8", "15/16"])
def test_a_share_that_fits_no_stack_is_told(share):
    with pytest.raises(ValueError, match="a multiple of 2, such as"):
        count_removed(make_model("marian"), "permute", Fraction(share))


@pytest.mark.parametrize(
    ("n_words", "expected"), [(2000, (100, 50, 50)), (100, (64, 16, 16)), (80, (48, 16, 16))]
)
def test_the_parts_share_nothing_and_are_as_large_as_asked(n_words, expected, tmp_path):
    opened = open_model(str(save_stranger("gpt2", tmp_path / "base")))
    text = write_text(tmp_path / "notes.txt", n_words)
    splits = read_splits(opened, [str(text)], 100, 50, context=16)
    parts = splits.calibration, splits.choice, splits.check
    assert all(abs(n - m) < 16 for n, m in zip(splits.tokens, expected, strict=True))
    blocks = [tuple(row.tolist()) for part in parts for batch in part for row in batch["input_ids"]]
    assert len(set(blocks)) == len(blocks) == sum(splits.tokens) // 16
    ids = [i for block in blocks for i in block]
    assert ids == opened.processor(text.read_text())["input_ids"][: len(ids)]  # each token once


def test_several_sources_are_read_in_turn_and_are_in_every_part(tmp_path):
    opened = open_model(str(save_stranger("gpt2", tmp_path / "base")))
    files = [tmp_path / f"{word}.txt" for word in ("one", "two")]
    words = sorted(set(make_text(200).split()))[:2]
    for file, word in zip(files, words, strict=True):
        file.write_text(f"{word} " * 2000)
    splits = read_splits(opened, [str(file) for file in files], 400, 100, context=16)
    for part in (splits.calibration, splits.choice, splits.check):
        blocks = torch.cat([batch["input_ids"] for batch in part])
        kinds = blocks.mode(dim=1).values  # the one word of each block
        counts = kinds.unique(return_counts=True)[1]
        assert len(counts) == 2 and (counts[0] - counts[1]).abs() <= 1
    assert list(take_in_turn(["abc", "d"])) == ["a", "d", "b", "c"]


def test_pictures_in_colour_and_patterns_are_read(tmp_path):
    from ffmerge.cli.reading import find_files

    write_images(tmp_path, n=4)
    found = find_files(str(tmp_path / "*" / "*.png"), (".png",), 0)
    assert len(found) == 4 and found == find_files(str(tmp_path), (".png",), 0)
    assert found != sorted(found) or find_files(str(tmp_path), (".png",), 1) != found
