"""Scoring candidates from their first changed layer on gives what whole runs give."""

import pytest
import torch
from families import MAKERS, make_batch, make_model

from ffmerge.groups import Group
from ffmerge.merging import list_window_plans, merge_groups
from ffmerge.patches import Plan, apply_patch, apply_plan
from ffmerge.reuse import Reuse
from ffmerge.sublayers import find_depths, find_stacks


def make_score(family: str):
    batches = [make_batch(family, padded=True, seed=seed) for seed in (0, 1)]

    @torch.no_grad()
    def score(model):
        model.eval()
        return sum(float(model(**batch).logits.double().abs().sum()) for batch in batches)

    return score


def list_candidates(model):
    depths = find_depths(model)
    plans = list_window_plans(depths, len(depths))
    merged = [apply_patch(model, merge_groups(model, plan, {})) for plan in plans]
    dropped = [apply_plan(model, Plan(dropped=dict.fromkeys(depths, (i,)))) for i in range(3)]
    late = apply_plan(model, Plan({n: (Group((d - 2, d - 1), d - 1),) for n, d in depths.items()}))
    return [*merged, *dropped, late, apply_plan(model, Plan())]


def count_calls(model, run):
    """How many layers of the first stack really run."""
    calls, stack = [], next(iter(find_stacks(model).values()))
    linear = [ff.module("W_out") for ff in stack.sublayers]
    handles = [m.register_forward_hook(lambda *args: calls.append(1)) for m in set(linear)]
    run()
    for handle in handles:
        handle.remove()
    return len(calls)


@pytest.mark.parametrize("budget", [10**9, 20_000])
@pytest.mark.parametrize("family", MAKERS)
def test_a_shortened_run_scores_as_a_whole_one_to_the_bit(family, budget):
    model, score = make_model(family), make_score(family)
    reuse = Reuse(model, score, budget)
    assert reuse.score == score(model)
    for candidate in list_candidates(model):
        assert reuse(candidate) == score(candidate)
        assert reuse(candidate) == score(candidate)  # nothing kept was written over


def test_layers_below_the_first_change_do_not_run():
    model, score = make_model("llama"), make_score("llama")
    reuse = Reuse(model, score)
    window = list_window_plans(find_depths(model), 1)[-1]  # layers 2 and 3 of 4
    candidate = apply_patch(model, merge_groups(model, window, {}))
    assert count_calls(candidate, lambda: score(candidate)) == 2 * 4
    assert count_calls(candidate, lambda: reuse(candidate)) == 2 * 2
    assert count_calls(candidate, lambda: score(candidate)) == 2 * 4  # and is whole again


def test_other_batches_are_refused_and_generation_runs_whole():
    model = make_model("llama")
    batches = iter([make_batch("llama", seed=seed) for seed in range(9)])

    @torch.no_grad()
    def wander(model):
        return float(model(**next(batches)).logits.sum())

    with pytest.raises(RuntimeError, match="another input than the base's"):
        Reuse(model, wander)

    prompt = make_batch("llama")["input_ids"]

    def write(model):
        return float(model.generate(prompt, max_new_tokens=3, do_sample=False).sum())

    with pytest.warns(UserWarning, match="writes token by token; candidates run whole"):
        reuse = Reuse(model, write)
    for candidate in list_candidates(model):
        assert reuse(candidate) == write(candidate)
