"""Other people's training loops keep shared sublayers shared: in memory, on disk, resumed."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from families import MAKERS, VOCABULARY, logits, make_batch, make_labelled, make_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Trainer, TrainingArguments

from ffmerge.checkpoints import find_shared_modules, load, save
from ffmerge.compression import merge
from ffmerge.sublayers import find_stacks


@pytest.fixture
def small():
    return merge(make_model("llama"), {"decoder": "1-3"}, method="vanilla")


def train(model, folder, resume=None, data=None, **options):
    ids = torch.randint(2, VOCABULARY, (16, 10), generator=torch.Generator().manual_seed(0))
    data = data or [{"input_ids": row, "labels": row} for row in ids]
    arguments = {
        "max_steps": 4,
        "save_steps": 2,
        "eval_steps": 2,
        "eval_strategy": "steps",
    } | options
    arguments = TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=1e-3, **arguments
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_trainer_saves_once_loads_its_best_and_resumes(small, tmp_path):
    groups = find_shared_modules(small)
    trainer = train(small, tmp_path / "t", load_best_model_at_end=True)
    assert find_shared_modules(trainer.model) == groups
    best = trainer.state.best_model_checkpoint
    stored = load_file(f"{best}/model.safetensors")
    held = {key for key, tensor in stored.items() if tensor.numel()}
    assert {key.split(".")[2] for key in held if "mlp" in key} == {"0", "1"}
    with pytest.raises(RuntimeError):  # config.json, which guards the folder, is not read here
        LlamaForCausalLM.from_pretrained(best, config=make_model("llama").config)
    for again in (load(best), AutoModelForCausalLM.from_pretrained(best)):
        assert find_shared_modules(again) == groups and equal(again, trainer.model)
    resumed = merge(make_model("llama"), {"decoder": "1-3"}, method="vanilla")
    resumed = train(resumed, tmp_path / "t", tmp_path / "t" / "checkpoint-2").model
    whole = load(tmp_path / "t" / "checkpoint-4")
    assert find_shared_modules(resumed) == groups and equal(resumed, whole)
    trainer.save_model(tmp_path / "saved")
    assert equal(load(tmp_path / "saved"), trainer.model)


@pytest.mark.parametrize("family", ["vit", "marian"])
def test_trainer_loads_its_best_and_resumes_other_kinds_of_models(family, tmp_path):
    def make_small():
        model = make_model(family)
        return merge(model, dict.fromkeys(find_stacks(model), "1-3"), method="vanilla")

    batch = make_labelled(family, n=16)
    data = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    options = {"data": data, "load_best_model_at_end": True}
    trainer = train(make_small(), tmp_path / "t", **options)
    assert equal(load(trainer.state.best_model_checkpoint), trainer.model)
    resumed = train(make_small(), tmp_path / "t", tmp_path / "t" / "checkpoint-2", **options).model
    assert equal(resumed, trainer.model)
    assert find_shared_modules(resumed) == find_shared_modules(make_small())


def test_trainer_with_gradient_checkpointing(small, tmp_path):
    trained = train(small, tmp_path / "t", gradient_checkpointing=True, save_strategy="no").model
    assert equal(load(save(trained, tmp_path / "small")), trained)


def test_accelerate_restores_its_state(small, tmp_path):
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(small)
    accelerator.save_state(str(tmp_path / "state"))
    before = logits(small, make_batch("llama"))
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.add_(0.1)
    accelerator.load_state(str(tmp_path / "state"))
    assert torch.equal(logits(small, make_batch("llama")), before)


@pytest.mark.parametrize("family", MAKERS)
def test_state_dicts_name_shared_weights_once_and_load_strictly(family):
    model = make_model(family)
    small = merge(model, dict.fromkeys(find_stacks(model), "1-3"), method="vanilla")
    state = copy.deepcopy(small.state_dict())
    other = make_model(family, seed=1)
    other = merge(other, dict.fromkeys(find_stacks(model), "1-3"), method="vanilla")
    other.load_state_dict(state)
    assert equal(other, small) and find_shared_modules(other) == find_shared_modules(small)
    assert len(state) < len(model.state_dict())


DDP = """
import copy, sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, "tests")
from families import logits, make_labelled, make_model
from ffmerge.checkpoints import find_shared_modules, load, save
from ffmerge.compression import merge

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
halves = [make_labelled("llama", n=4, seed=seed) for seed in (0, 1)]
alone = merge(make_model("llama"), {"decoder": "1-3"}, method="vanilla").train()
for checkpointing in (False, True):
    small = copy.deepcopy(alone)
    if checkpointing:
        small.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped = DistributedDataParallel(small)
    for _ in range(2):
        small.zero_grad()
        wrapped(**halves[rank]).loss.backward()
    alone.zero_grad()
    for half in halves:
        (alone(**half).loss / 2).backward()
    for p, q in zip(small.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6)
if rank == 0:
    again = load(save(wrapped, f"{folder}/small"))
    assert find_shared_modules(again) == find_shared_modules(alone)
dist.barrier()
"""


@pytest.mark.slow
def test_two_processes_train_it_as_one_does(tmp_path):
    """With re-entrant checkpointing DDP refuses shared weights; `use_reentrant=False` is right."""
    calls = [
        subprocess.Popen([sys.executable, "-c", DDP, str(rank), str(tmp_path)], env=os.environ)
        for rank in (0, 1)
    ]
    assert [call.wait(timeout=300) for call in calls] == [0, 0]
