"""Saving takes nothing from anybody, and leaves all of the new model or all of the old one."""

import os
from pathlib import Path

import pytest
import torch
from families import logits, make_batch, make_model
from strangers import make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer

from ffmerge import files
from ffmerge.checkpoints import load, save
from ffmerge.compression import merge
from ffmerge.saving.folders import OWN


@pytest.fixture(scope="module")
def small():
    return merge(make_model("gpt2"), {"decoder": "1-3"}, method="vanilla")


@pytest.fixture(scope="module")
def other():
    return merge(make_model("gpt2", seed=1), {"decoder": "0-2"}, method="vanilla")


def read(root):
    """Everything below a folder, by name; of links where they lead."""
    return {
        str(path.relative_to(root)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in root.rglob("*")
    }


def refuse(small, folder, root, match):
    before = read(root)
    with pytest.raises(ValueError, match=match) as error:
        save(small, folder)
    assert read(root) == before
    assert "\n" not in str(error.value) and "valid is a new or empty folder" in str(error.value)


FOREIGN = [
    "notes.txt",
    "thesis.tex",
    "training_log.csv",
    ".git",
    "optimizer.pt",
    "model.safetensors",
]


@pytest.mark.parametrize("name", [*FOREIGN, "config.json", "README.md", "model.safetensors.bak"])
def test_a_folder_that_holds_something_else_is_refused(name, small, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("a week of work")
    refuse(small, tmp_path / "run", tmp_path, f"holds {name}, which is not its own")


@pytest.mark.parametrize("name", [*FOREIGN[:-1], "README.md", "generation_config.json/"])
def test_what_came_into_a_saved_folder_since_is_not_its_own(name, small, tmp_path):
    folder = save(small, tmp_path / "run")
    path = folder / name
    if name.endswith("/"):
        path.unlink()
        path.mkdir()
        (path / "mine").write_text("mine")
    else:
        path.write_text("my own words")
    refuse(small, folder, tmp_path, f"holds {path.name}, which is not its own")


def test_the_model_of_somebody_else_is_not_replaced(small, tmp_path):
    make_model("gpt2").save_pretrained(tmp_path / "base")
    refuse(small, tmp_path / "base", tmp_path, "holds .*, which is not its own")


@pytest.mark.parametrize("way", ["..", "../other", "sub/..", "sub/../../project"])
def test_no_path_leads_up(way, small, tmp_path, inside):
    (tmp_path / "project" / "sub").mkdir(parents=True)
    (tmp_path / "project" / "thesis.tex").write_text("x")
    inside(tmp_path / "project")
    refuse(small, way, tmp_path, r"leads through '\.\.'")
    refuse(small, tmp_path / "project" / way, tmp_path, r"leads through '\.\.'")


def test_no_folder_is_named_as_what_a_shell_would_expand(small, tmp_path, inside):
    inside(tmp_path)
    refuse(small, "~/small", tmp_path, r"leads through '~'")
    assert not list(tmp_path.iterdir())


def test_links_and_files_are_refused(small, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    for name, match in (("link", "is a link"), ("broken", "is a link"), ("file", "is a file")):
        refuse(small, tmp_path / name, tmp_path, match)


def test_a_link_inside_is_replaced_and_never_followed(small, other, tmp_path):
    folder = save(other, tmp_path / "run")
    for name in ("model.safetensors", "config.json"):
        (folder / name).rename(tmp_path / name)  # as a store does that links
        (folder / name).symlink_to(tmp_path / name)
    kept = {name: (tmp_path / name).read_bytes() for name in ("model.safetensors", "config.json")}
    save(small, folder)
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert not (folder / "config.json").is_symlink()
    assert torch.equal(logits(load(folder), make_batch("gpt2")), logits(small, make_batch("gpt2")))


def test_tokenizers_stay_and_so_does_the_current_folder(small, other, tmp_path, inside):
    (tmp_path / "run").mkdir()
    inside(tmp_path / "run")
    names = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "merges.txt")
    for name in (*names, "source.spm", "chat_template.jinja"):
        Path(name).write_text("{}")
    for model in (other, small):
        save(model, ".")
        assert Path.cwd().samefile(tmp_path / "run") and Path("source.spm").read_text() == "{}"
        assert torch.equal(logits(load("."), make_batch("gpt2")), logits(model, make_batch("gpt2")))
    assert all(Path(name).read_text() == "{}" for name in names)


def test_what_lies_beside_a_folder_is_left_alone(small, tmp_path):
    for name in ("run.partial", "run.old", "run2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    before = read(tmp_path)
    save(small, tmp_path / "run")
    save(small, tmp_path / "run")
    assert {k: v for k, v in read(tmp_path).items() if k.split("/")[0] != "run"} == before


def fail_at(monkeypatch, step, error):
    """Let the step-th file that is put in place fail."""
    count, replace = iter(range(1000)), os.replace

    def replace_some(*args, **kwargs):
        if next(count) == step:
            raise error
        return replace(*args, **kwargs)

    monkeypatch.setattr(os, "replace", replace_some)


def count_steps(small, folder, monkeypatch):
    count, replace = [], os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *a, **k: (count.append(1), replace(*a, **k)))
        save(small, folder)
    return len(count)


def test_after_an_error_at_any_step_the_folder_is_what_it_was(small, other, tmp_path, monkeypatch):
    folder = save(other, tmp_path / "run")
    n = count_steps(other, folder, monkeypatch)
    before = read(tmp_path)
    assert n >= 8
    for step in range(n):
        with monkeypatch.context() as patch:
            fail_at(patch, step, OSError(28, "No space left on device"))
            with pytest.raises(OSError, match="No space left"):
                save(small, folder)
        assert read(tmp_path) == before, step
    with monkeypatch.context() as patch:
        fail_at(patch, 2, OSError(28, "No space left on device"))
        with pytest.raises(OSError, match="No space left"):
            save(small, tmp_path / "new")
    assert read(tmp_path) == before  # and nothing where nothing was


class Killed(BaseException):
    """Nobody cleans up after it."""


def test_after_a_kill_at_any_step_nothing_loads_by_halves_and_the_old_one_comes_back(
    small, other, tmp_path, monkeypatch
):
    folder, batch = save(other, tmp_path / "run"), make_batch("gpt2")
    n = count_steps(other, folder, monkeypatch)
    before, roll_back = read(tmp_path), files._roll_back
    for step in range(n):
        with monkeypatch.context() as patch:
            fail_at(patch, step, Killed())
            patch.setattr(files, "_roll_back", lambda folder: None)
            with pytest.raises(Killed):
                save(small, folder)
        assert roll_back is files._roll_back and (folder / files.STAGING).exists()
        if (folder / "config.json").exists():
            plain = AutoModelForCausalLM.from_pretrained(folder)
            assert torch.equal(logits(plain, batch), logits(other, batch))
        assert torch.equal(logits(load(folder), batch), logits(other, batch))
        assert read(tmp_path) == before, step


def test_an_old_model_that_cannot_be_deleted_is_in_nobodys_way(small, other, tmp_path, monkeypatch):
    folder, unlink = save(other, tmp_path / "run"), os.unlink

    def refuse_some(path, *args, **kwargs):
        if str(path).endswith("config.json"):
            raise PermissionError("busy")
        return unlink(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse_some)
        save(small, folder)
    assert torch.equal(logits(load(folder), make_batch("gpt2")), logits(small, make_batch("gpt2")))
    save(other, folder)
    assert not (folder / files.STAGING).exists()


def test_two_processes_do_not_save_into_one_folder(small, tmp_path):
    before = read(save(small, tmp_path / "run"))
    with files.filling(tmp_path / "run", OWN, "config.json") as partial:
        (partial / "config.json").write_text("{}")
        for act in (lambda: save(small, tmp_path / "run"), lambda: load(tmp_path / "run")):
            with pytest.raises(
                BlockingIOError, match=r"another process is saving into .*; valid is"
            ):
                act()
        raise_later = RuntimeError("changed my mind")
        with pytest.raises(RuntimeError):
            raise raise_later
        (partial / "config.json").unlink()
        for name in before:
            (partial / name).write_bytes(before[name])
    assert read(tmp_path / "run") == before


def test_a_tokenizer_takes_the_place_of_none_but_its_own(small, tmp_path):
    mine, theirs = make_tokenizer(), make_tokenizer()
    theirs.add_tokens(["another"])
    theirs.save_pretrained(tmp_path / "run")
    before = read(tmp_path)
    with pytest.raises(ValueError, match=r"holds tokenizer.*json, which is not its own"):
        save(small, tmp_path / "run", mine)
    assert read(tmp_path) == before
    save(save(small, tmp_path / "run") and small, tmp_path / "run", mine)  # a folder of ours
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run")) == len(mine)


def test_the_chat_template_of_another_tokenizer_is_not_read_with_a_new_one(small, tmp_path):
    talking, silent = make_tokenizer(), make_tokenizer()
    talking.chat_template = "{{ messages }}"
    folder = save(small, tmp_path / "run", talking)
    assert save(small, folder, talking) == folder
    before = read(tmp_path)
    with pytest.raises(ValueError, match=r"holds chat_template.jinja of another tokenizer"):
        save(small, folder, silent)
    assert read(tmp_path) == before


def test_tokens_of_another_tokenizer_are_not_read_with_a_new_one(small, tmp_path):
    """Slow tokenizers keep what was added in a file of its own, which any other one reads too."""
    other = ByT5Tokenizer()
    other.add_tokens(["word99"])
    folder = save(small, tmp_path / "run", other)
    before = read(tmp_path)
    with pytest.raises(ValueError, match=r"holds (added|special)_tokens.*json of another token"):
        save(small, folder, make_tokenizer())
    assert read(tmp_path) == before


@pytest.mark.parametrize("content", ["{}", "mine", '{"groups": []}'])
def test_a_file_of_the_same_name_makes_no_folder_ours(content, small, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sharing.json").write_text(content)
    (tmp_path / "run" / "config.json").write_text('{"mine": 1}')
    refuse(small, tmp_path / "run", tmp_path, "which is not its own")


def test_what_is_no_processor_is_told_before_anything_is_written(small, tmp_path):
    with pytest.raises(ValueError, match=r"processor is 'gpt2'; valid is a tokenizer"):
        save(small, tmp_path / "run", "gpt2")
    assert not (tmp_path / "run").exists()
