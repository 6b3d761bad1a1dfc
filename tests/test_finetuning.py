import pandas as pd
import pytest
import torch

from ffmerge.checkpoints import load, save, shared_keys
from ffmerge.compression import merge
from ffmerge.patches import count_parameters
from ffmerge.sublayers import find_stacks
from study.finetuning import finetune, make_schedule, measure_divergence
from study.tasks import Score, load_task, make_batches


@pytest.fixture
def setting(tiny):
    root, params = tiny
    task = load_task("vit-glyphs", params, root)
    torch.manual_seed(0)
    small = merge(task.new_model(), {"encoder": "1-4"}, method="vanilla")
    validation = list(make_batches(task, "validation", 32))
    return root, task, params.models["vit-glyphs"].finetune, validation, small


def tune(setting, small, folder, steps, resume=False):
    root, task, training, validation, _ = setting
    training = training.model_copy(update={"steps": steps, "decay_steps": 4})
    return finetune(small, task, training, validation, 0, root / folder, resume)


def test_tuning_changes_the_shared_sublayer_and_keeps_it_shared(setting):
    small, n = setting[-1], count_parameters(setting[-1])
    tied, before = shared_keys(small), small.vit.layers[1].mlp.fc1.weight.clone()
    curve = tune(setting, small, "trainer", 4)
    sublayers = find_stacks(small)["encoder"].sublayers
    assert sublayers[1].module("W_in") is sublayers[4].module("W_in")
    assert not torch.equal(before, small.vit.layers[4].mlp.fc1.weight)
    assert count_parameters(small) == n and shared_keys(small) == tied
    assert curve.step.tolist() == [0, 1, 2, 3, 4] and curve.accuracy.count() == 3
    assert curve.loss[1:].notna().all() and curve.accuracy.between(0, 100).sum() == 3


def test_the_best_state_on_validation_data_is_kept(setting):
    root, task, _training, _validation, small = setting
    start = save(small, root / "start")
    two, four = load(start), load(start)
    tune(setting, two, "two", 2)
    scores = iter([10.0, 30.0, 20.0])  # before tuning, after two steps, after four
    task.evaluate = lambda model, batches: Score({task.metric: next(scores)}, 1)
    assert tune(setting, four, "four", 4).accuracy.dropna().tolist() == [10, 30, 20]
    for a, b in zip(two.parameters(), four.parameters(), strict=True):
        assert torch.equal(a, b)
    assert shared_keys(four) == shared_keys(small)


def test_the_last_state_is_a_candidate_whatever_the_steps_between_two(setting):
    curve = tune(setting, setting[-1], "trainer", 3)  # evaluated every 2 steps
    assert curve.step[curve.accuracy.notna()].tolist() == [0, 2, 3]


def test_a_resumed_tuning_ends_as_an_uninterrupted_one_still_shared(setting):
    root, small = setting[0], setting[-1]
    start = save(small, root / "start")
    whole, halves = load(start), load(start)
    tune(setting, whole, "whole", 4)
    tune(setting, halves, "halves", 2)
    resumed = load(start)
    tune(setting, resumed, "halves", 4, resume=True)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert shared_keys(resumed) == shared_keys(small)
    assert count_parameters(resumed) == count_parameters(small)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(setting):
    root, task, training, validation, small = setting
    start = save(small, root / "start")
    weights = []
    for seed in (0, 0, 1):
        model = load(start)
        finetune(model, task, training, validation, seed, root / "trainer")
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def learn(setting, share, teacher=None):
    """The tuned weights at a share of the teacher in the loss, and the learning curve."""
    root, task, training, validation, small = setting
    model = load(save(small, root / "start"))
    training = training.model_copy(update={"distillation": share})
    curve = finetune(model, task, training, validation, 0, root / "trainer", teacher=teacher)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), curve


def test_without_distillation_a_teacher_is_not_heard(setting):
    teacher = setting[1].new_model()
    alone, unheard, heard = (
        learn(setting, 0)[0],
        learn(setting, 0, teacher),
        learn(setting, 0.5, teacher),
    )
    assert torch.equal(alone, unheard[0]) and not torch.equal(alone, heard[0])


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn_at_first(setting):
    teacher = load(save(setting[-1], setting[0] / "teacher"))
    before = [p.clone() for p in teacher.parameters()]
    _, curve = learn(setting, 1, teacher)
    assert abs(curve.loss.dropna().iloc[0]) < 1e-6
    assert all(map(torch.equal, before, teacher.parameters()))  # and it learns nothing itself


def test_divergence_is_none_of_equals_and_padding_is_left_out():
    logits, taught = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, -100, 0], [-100, 3, 3, 3], [0, 0, 0, -100]])
    assert measure_divergence(taught, taught, labels) == 0
    expected = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=x[labels != -100]) for x in (taught, logits))
    ).mean()
    found = measure_divergence(logits, taught, labels)
    assert found > 0
    torch.testing.assert_close(found, expected)
    logits[labels == -100] += 9 * torch.arange(5)
    assert measure_divergence(logits, taught, labels) == found


def test_the_papers_schedules(setting):
    training = setting[2]

    def rates(**changes):
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], 1.0)
        recipe = training.model_copy(update={"learning_rate": 1.0} | changes)
        schedule = make_schedule(optimizer, recipe)
        values = []
        for _ in range(recipe.steps):
            values.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return pd.Series(values)

    vit = rates(schedule="linear", steps=10, decay_steps=5, minimum_learning_rate=0.1)
    assert vit.tolist()[:3] == pytest.approx([1, 0.82, 0.64])
    assert vit[5:].tolist() == pytest.approx([0.1] * 5)
    text = rates(schedule="inverse_sqrt", steps=5, warmup_steps=2)
    assert text.tolist() == pytest.approx([0, 0.5, 1, (2 / 3) ** 0.5, (2 / 4) ** 0.5])
    assert rates(schedule="cosine", steps=5).is_monotonic_decreasing
