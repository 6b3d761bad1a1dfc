"""Tunings that are killed go on as if nothing had happened: weights and curve bit for bit."""

import multiprocessing
import os
import shutil
import signal

import pandas as pd
import pytest
import torch
from datasets import Dataset
from families import VOCABULARY, make_model
from test_pipeline import MODEL, run_here
from test_quantization import ADAPTERS, merge_some, olmo  # noqa: F401 (a fixture)
from transformers import Trainer, set_seed

from ffmerge.checkpoints import shared_keys
from ffmerge.files import read_json
from study.finetuning import finetune, trained_weights
from study.metrics import Metric
from study.quantization import add_adapters
from study.resuming import IDENTITY, find_checkpoint, identify, prepare
from study.sections import Training
from study.tasks import Score

TRAINING = Training(  # four steps an epoch; a checkpoint every 5 steps, a row of the loss every 2
    steps=40,
    batch_size=4,
    learning_rate=1e-3,
    schedule="cosine",
    warmup_steps=2,
    evaluate_every=5,
    precision="float32",
)


class Repeating:
    """A task on sequences of any length, all of them one token over and over."""

    metric = Metric("perplexity", "", "lower")

    def __init__(self, streamed=False, grouped=True):
        self.streamed, self.grouped = streamed, grouped

    def dataset(self, split, limit=None, seed=0):
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(3, 12, (16,), generator=generator).tolist()
        tokens = torch.randint(2, VOCABULARY, (16,), generator=generator).tolist()
        rows = {"token": tokens, "n": lengths} | ({"length": lengths} if self.grouped else {})
        rows = Dataset.from_dict(rows)
        return rows.to_iterable_dataset().shuffle(seed, buffer_size=8) if self.streamed else rows

    def collate(self, examples):
        longest = max(example["n"] for example in examples)
        mask = torch.tensor([[i < e["n"] for i in range(longest)] for e in examples])
        ids = torch.tensor([[e["token"]] * longest for e in examples]) * mask
        labels = ids.masked_fill(~mask, -100)
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}

    @torch.no_grad()
    def evaluate(self, model, batches):
        model.eval()
        return Score({self.metric: float(model(**batches[0]).loss)}, 4)


def make_tied(family="marian"):
    return merge_some(make_model(family))


def tune(folder, small, training=TRAINING, resume=False, task=None, teacher=None):
    task = task or Repeating()
    validation = [task.collate(Dataset.from_dict({"token": [2, 3], "n": [5, 7]}).to_list())]
    set_seed(0)
    return finetune(small, task, training, validation, 0, folder, resume, teacher)


def kill_in_child(run, step, saving=False):
    """Run in a process of its own, which is killed at a step, or while it saves that step."""

    def child():
        calls, method, save = [], Trainer.training_step, torch.save

        def count_steps(*args, **kwargs):
            calls.append(1)
            if len(calls) == step and not saving:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*args, **kwargs)

        def save_half(content, path, *args, **kwargs):
            if saving and len(calls) == step and "scheduler" in str(path):
                with open(path, "wb") as file:
                    file.write(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return save(content, path, *args, **kwargs)

        Trainer.training_step, torch.save = count_steps, save_half
        run()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def assert_same(a, b):
    (one, curve), (other, again) = a, b
    assert shared_keys(one) == shared_keys(other)
    for (name, p), q in zip(
        trained_weights(one).items(), trained_weights(other).values(), strict=True
    ):
        assert torch.equal(p, q), name
    pd.testing.assert_frame_equal(curve, again, check_exact=True)


KINDS = {
    "grouped by length, with dropout": ({}, {}),
    "not grouped": ({}, {"grouped": False}),
    "accumulating": ({"accumulation": 2, "batch_size": 2}, {}),
    "recomputing": ({"gradient_checkpointing": True}, {}),
    "distilled": ({"distillation": 0.5}, {}),
    "streamed": ({}, {"streamed": True, "grouped": False}),
}


FIRST = ("grouped by length, with dropout", "accumulating", "streamed")  # each another way
SOME = [k if k in FIRST else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]


@pytest.mark.parametrize("kind", SOME)
def test_killed_in_a_later_epoch_it_ends_the_same(kind, tmp_path):
    changes, task = KINDS[kind]
    training, task = TRAINING.model_copy(update={"steps": 16} | changes), Repeating(**task)
    teacher = make_model("marian", seed=1)
    whole, cut, resumed = make_tied(), make_tied(), make_tied()
    curve = tune(tmp_path / "whole", whole, training, task=task, teacher=teacher)
    step = 13 * (training.accumulation or 1)
    kill_in_child(lambda: tune(tmp_path / "cut", cut, training, task=task, teacher=teacher), step)
    assert find_checkpoint(tmp_path / "cut").name == "checkpoint-10"  # in the third epoch
    again = tune(tmp_path / "cut", resumed, training, True, task, teacher)
    assert_same((whole, curve), (resumed, again))


def test_the_loss_since_the_curves_last_row_is_not_forgotten(tmp_path):
    whole, cut, resumed = (make_tied("gpt2") for _ in range(3))
    curve = tune(tmp_path / "whole", whole)
    assert {4, 6} <= set(curve.step[curve.loss.notna()]) and curve.loss.isna()[
        curve.step == 5
    ].all()
    kill_in_child(lambda: tune(tmp_path / "cut", cut), 7)
    assert find_checkpoint(tmp_path / "cut").name == "checkpoint-5"
    assert_same((whole, curve), (resumed, tune(tmp_path / "cut", resumed, resume=True)))


@pytest.mark.parametrize("every", [4, 6])
def test_killed_twice_after_an_epochs_end_or_in_it_it_ends_the_same(every, tmp_path):
    training = TRAINING.model_copy(update={"steps": 18, "evaluate_every": every})
    whole, cut, resumed = make_tied(), make_tied(), make_tied()
    curve = tune(tmp_path / "whole", whole, training)
    kill_in_child(lambda: tune(tmp_path / "cut", cut, training), every + 1)
    kill_in_child(lambda: tune(tmp_path / "cut", cut, training, True), every + 2)
    assert find_checkpoint(tmp_path / "cut").name == f"checkpoint-{2 * every}"
    assert_same((whole, curve), (resumed, tune(tmp_path / "cut", resumed, training, True)))


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path):
    training = TRAINING.model_copy(update={"steps": 16})
    whole, cut, resumed = make_tied(), make_tied(), make_tied()
    curve = tune(tmp_path / "whole", whole, training)
    kill_in_child(lambda: tune(tmp_path / "cut", cut, training), 10, saving=True)
    assert (tmp_path / "cut" / "checkpoint-10").is_dir()
    assert find_checkpoint(tmp_path / "cut").name == "checkpoint-5"
    assert_same((whole, curve), (resumed, tune(tmp_path / "cut", resumed, training, True)))


def test_a_state_that_was_cut_off_is_passed_over(tmp_path):
    tune(tmp_path, make_tied(), TRAINING.model_copy(update={"steps": 10}))
    state = tmp_path / "checkpoint-10" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    assert find_checkpoint(tmp_path).name == "checkpoint-5"
    shutil.rmtree(tmp_path / "checkpoint-5")
    assert find_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match=r"resume is True, but .* no whole checkpoint; valid is F"):
        tune(tmp_path, make_tied(), resume=True)


def test_killed_after_its_last_step_it_trains_no_more(tmp_path):
    training = TRAINING.model_copy(update={"steps": 7})
    whole, resumed = make_tied(), make_tied()
    curve = tune(tmp_path, whole, training)
    assert_same((whole, curve), (resumed, tune(tmp_path, resumed, training, True)))


def test_adapters_go_on_too(olmo, tmp_path):  # noqa: F811
    training = TRAINING.model_copy(update={"steps": 7, "adapters": ADAPTERS})
    runs = []
    for name in ("whole", "cut"):
        set_seed(0)
        adapted = add_adapters(olmo, ADAPTERS.model_copy(update={"dropout": 0.2}), tmp_path / "4")
        if name == "cut":
            kill_in_child(lambda: tune(tmp_path / "cut", adapted, training), 7)  # noqa: B023
        runs.append((adapted, tune(tmp_path / name, adapted, training, name == "cut")))
    assert_same(*runs)


def test_only_the_very_same_tuning_is_resumed(tiny, capsys):
    root, params = tiny

    def ask(seed=0, small=None, params=params):
        models, names = (small or make_tied(),), {"model": MODEL, "variant": "base-tuned"}
        return prepare(root / "t", identify("5_finetune", params, seed, models, **names))

    def begin():
        assert not ask()
        tune(root / "t", make_tied(), TRAINING.model_copy(update={"steps": 5}))

    begin()
    assert ask() and ask()
    assert "going on from" in capsys.readouterr().err
    changed = params.models[MODEL].finetune.model_copy(update={"steps": 5})
    entry = params.models[MODEL].model_copy(update={"finetune": changed})
    others = {
        "seed": {"seed": 1},
        "weights": {"small": make_tied("vit")},
        "settings": {"params": params.model_copy(update={"models": {MODEL: entry}})},
    }
    for what, other in others.items():
        assert not ask(**other) and find_checkpoint(root / "t") is None
        assert f"another training ({what} differ)" in capsys.readouterr().err
        begin()
    (root / "t" / IDENTITY).write_text('{"half')
    assert not ask() and read_json(root / "t" / IDENTITY)["seed"] == 0


def test_a_killed_notebook_goes_on_and_leaves_nothing_behind(tiny):
    root, _ = tiny
    run_here("1_base", {"model": MODEL})
    names = {"model": MODEL, "variant": "base-tuned"}
    results = [root / f"models/{MODEL}/tuned/base-tuned/0/model.safetensors"]
    results.append(root / f"results/models/{MODEL}/curves/base-tuned-0.csv")
    run_here("5_finetune", names)
    expected = [path.read_bytes() for path in results]
    for path in results:
        path.unlink()
    kill_in_child(lambda: run_here("5_finetune", names), 3)
    folder = root / f"models/{MODEL}/trainer/base-tuned-0"
    assert find_checkpoint(folder).name == "checkpoint-2"
    shutil.copytree(folder, root / "before")
    steps, method = [], Trainer.training_step
    Trainer.training_step = lambda *args, **kwargs: steps.append(1) or method(*args, **kwargs)
    try:
        run_here("5_finetune", names)
    finally:
        Trainer.training_step = method
    assert len(steps) == 2 and [path.read_bytes() for path in results] == expected
    assert not folder.exists()
