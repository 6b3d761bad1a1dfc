"""The paper's batches on small machines: added up, recomputed, shared by processes."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import write_tiny_profile
from families import MAKERS, make_labelled, make_model
from test_quantization import merge_some
from test_resuming import TRAINING, make_tied, tune

import study.processes
from ffmerge.checkpoints import load, save, shared_keys
from ffmerge.groups import Group
from ffmerge.patches import Patch, Plan, apply_patch, count_parameters, save_patch
from study import launching
from study.config import load_params
from study.finetuning import finetune
from study.launching import finetune_in_processes
from study.processes import check_processes
from study.sections import Base, Training
from study.settings import resolve
from study.tasks import load_task, make_batches

FAMILIES = [name for name in MAKERS if name != "bert"]


@pytest.mark.parametrize("family", ["gpt2", "marian"])
def test_two_halves_of_a_batch_teach_what_the_whole_does(family, tmp_path):
    """Also where the halves hold unequally many tokens (dropout, which differs, is off)."""
    training, tuned = TRAINING.model_copy(update={"steps": 6}), []
    for changes in ({}, {"batch_size": 2, "accumulation": 2}):
        small = make_tied(family)
        for module in small.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        folder = tmp_path / str(len(tuned))
        curve = tune(folder, small, training.model_copy(update=changes))
        tuned.append((torch.cat([p.detach().flatten() for p in small.parameters()]), curve))
    (whole, curve), (halves, again) = tuned
    torch.testing.assert_close(halves, whole, atol=1e-4, rtol=0)  # six steps go 6e-3 far
    pd.testing.assert_frame_equal(again, curve, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_tied_modules_the_same_gradients(family):
    batch, gradients = make_labelled(family), []
    for recomputes in (False, True):
        small = merge_some(make_model(family)).train()
        if recomputes:
            small.gradient_checkpointing_enable({"use_reentrant": False})
            assert small.is_gradient_checkpointing
        torch.manual_seed(0)
        small(**batch).loss.backward()
        gradients.append([p.grad for p in small.parameters() if p.requires_grad])
    kept, recomputed = gradients
    assert any(g is not None and g.abs().sum() for g in kept)
    for a, b in zip(kept, recomputed, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_new_settings_that_are_off_are_not_there():
    new = {"accumulation", "gradient_checkpointing", "processes", "sharded"}
    assert not new & set(resolve(TRAINING))
    told = TRAINING.model_dump() | {"accumulation": 1, "processes": 1}
    assert resolve(Training(**told)) == resolve(TRAINING)
    told |= {"accumulation": 8, "gradient_checkpointing": True, "processes": 2}
    told |= {"sharded": True}
    assert resolve(Training(**told)) | {"processes": 2, "accumulation": 8} == resolve(
        Training(**told)
    )


def test_processes_that_cannot_be_are_refused_in_one_sentence(monkeypatch):
    told = TRAINING.model_dump() | {"processes": 3}
    with pytest.raises(ValueError, match="batch_size is 4, but processes is 3; valid are multip"):
        Training(**told)
    with pytest.raises(ValueError, match="sharded is true, but processes is 1; valid are 2 or mo"):
        Training(**TRAINING.model_dump() | {"sharded": True})
    base = {"architecture": {"a": 1}, "training": told | {"processes": 2}}
    with pytest.raises(ValueError, match=r"training.processes is 2; valid is 1"):
        Base(**base)
    monkeypatch.setattr(study.processes, "find_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"processes is 2, but there is 1 GPU; valid is 1"):
        check_processes(2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match=r"processes is 8, but there are 4 GPUs; valid are 1 to 4"):
        check_processes(8)


def test_one_process_does_not_do_the_work_of_two(tmp_path):
    with pytest.raises(ValueError, match=r"processes is 2, but finetune runs in 1; valid is"):
        tune(tmp_path, make_tied(), TRAINING.model_copy(update={"processes": 2}))


PATCH = Patch(Plan({"encoder": (Group((1, 2, 3, 4), 1),)}))

WORKER = """
import os, signal, sys, threading
from pathlib import Path
import torch
from study import finetuning, launching
from study.finetuning import _Trainer, gather_weights

def keep(trainer, load=_Trainer._load_best_model):
    torch.save(gather_weights(trainer.model), f"rank-{trainer.args.process_index}.pt")
    load(trainer)

def step(trainer, *args, method=_Trainer.training_step):
    if trainer.state.global_step == 3 and "KILLED" in os.environ:
        os.kill(int(os.environ["KILLED"]), signal.SIGKILL)
        threading.Event().wait()  # until we are ended too
    return method(trainer, *args)

_Trainer._load_best_model, _Trainer.training_step = keep, step
launching.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])  # DDP, FSDP
def test_two_processes_tune_as_one_does_and_end_and_resume_with_their_notebook(
    sharded, tmp_path, inside, monkeypatch
):
    root = inside(write_tiny_profile(tmp_path / "root"))
    edited = yaml.safe_load((root / "params.yaml").read_text())
    edited["models"]["vit-glyphs"]["finetune"] |= {
        "processes": 2,
        "sharded": sharded,
        "steps": 6,
    }
    (root / "params.yaml").write_text(yaml.safe_dump(edited, sort_keys=False))
    params, names = load_params(), ("vit-glyphs", "permute-third", 0)
    task = load_task("vit-glyphs", params, root)
    torch.manual_seed(0)
    folder = save(task.new_model(), root / "models/vit-glyphs/base")
    task.save_processor(folder)
    save_patch(PATCH, root / "models/vit-glyphs/patches/permute/permute-third.safetensors")
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(launching, "WORKER", (str(tmp_path / "worker.py"),))

    one, two, three = (apply_patch(load(folder), PATCH) for _ in range(3))
    alone = {"processes": None, "sharded": False}
    training = params.training(*names[:2]).model_copy(update=alone)
    validation = list(make_batches(task, "validation", 32, 64))
    curve = finetune(one, task, training, validation, 0, root / "one")
    shared = finetune_in_processes(two, *names, root / "two", False)
    columns = ["step", "loss", "learning_rate", "accuracy"]
    pd.testing.assert_frame_equal(shared[columns], curve[columns], rtol=1e-5)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0)
    ranks = [torch.load(root / f"rank-{rank}.pt") for rank in (0, 1)]
    assert all(map(torch.equal, *(rank.values() for rank in ranks)))
    assert len(ranks[0]) == len(list(two.parameters()))
    assert shared_keys(two) == shared_keys(one) and count_parameters(two) == count_parameters(one)

    def child():
        os.environ["KILLED"] = str(os.getpid())
        finetune_in_processes(three, *names, root / "three", False)

    notebook = multiprocessing.get_context("fork").Process(target=child)
    notebook.start()
    notebook.join(300)
    assert notebook.exitcode == -signal.SIGKILL
    wait_for_the_end_of(str(root / "three"))
    again = finetune_in_processes(three, *names, root / "three", True)
    pd.testing.assert_frame_equal(again, shared, check_exact=True)
    assert all(map(torch.equal, two.parameters(), three.parameters()))


def wait_for_the_end_of(folder):
    """Wait until no process has a folder in its command line."""

    def is_running():
        calls = Path("/proc").glob("[0-9]*/cmdline")
        return any(folder.encode() in read_quietly(call) for call in calls)

    until = time.monotonic() + 60
    while is_running():
        assert time.monotonic() < until, "the processes outlive their notebook"
        time.sleep(0.2)


def read_quietly(path):
    try:
        return path.read_bytes()
    except OSError:  # it ended just now
        return b""
