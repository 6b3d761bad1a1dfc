"""What notebook 8 measures: spread and error, the two ways through a pool, ablations."""

import copy
from dataclasses import replace

import pytest
import torch
from families import LAYERS, MAKERS, logits, make_batch, make_model

from ffmerge.ablations.forward import measure_pool, reselect, take_greedily
from ffmerge.ablations.private import untie_biases
from ffmerge.activations import collect_outputs
from ffmerge.fidelity import RunningSpread, measure_error, measure_spread
from ffmerge.importance import score_surgeon
from ffmerge.layerwise import prune_by_surgeon, prune_in_turn
from ffmerge.leastsquares import refit_output
from ffmerge.merging import list_window_plans
from ffmerge.methods import Evidence, find_method
from ffmerge.moments import collect_moments
from ffmerge.patches import Plan, apply_patch
from ffmerge.pooling import fit_pools, pool_pairs
from ffmerge.pruning import list_neuron_plans, prune
from ffmerge.refitting import collect_inputs, compute_output, learn_activation
from ffmerge.regression import regress_groups
from ffmerge.sublayers import find_depths, find_stacks
from ffmerge.weights import permute, select

TOKENS, ENOUGH = 60, 900


def calibrate(family):
    """Batches, the same at every call."""
    batches = [make_batch(family, seed=seed) for seed in range(30)]
    return lambda: iter(batches)


@pytest.fixture(params=MAKERS)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return make_model(family)


def pool(model, family):
    """The pools of every pair, of which b's neurons are aligned to a's as they stand."""
    stacks = find_stacks(model)
    pairs = {
        f"{name}.{a}.{a + 1}": torch.arange(stack.sublayers[a].d_ff)
        for name, stack in stacks.items()
        for a in range(0, len(stack) - 1, 2)
    }
    return pool_pairs(model, pairs, calibrate(family)(), ENOUGH)


def test_the_spread_is_numpys_whatever_the_chunks():
    x = 5 + torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    running = RunningSpread()
    for rows in x.split(7):
        running.update(rows)
    assert running.value() == pytest.approx(float(x.double().var(0, correction=0).sum().sqrt()))


def test_permuting_changes_no_spread(model, family):
    before = measure_spread(model, calibrate(family)(), TOKENS)
    assert len(before) == 2 * sum(find_depths(model).values())
    for stack in find_stacks(model).values():
        for ff in stack.sublayers:
            ff.write(permute(ff.read(), torch.arange(ff.d_ff).flip(0)))
    after = measure_spread(model, calibrate(family)(), TOKENS)
    assert [row[:3] for row in before] == [row[:3] for row in after]
    assert [row[3] for row in before] == pytest.approx([row[3] for row in after], rel=1e-4)


def test_least_squares_lowers_the_error_and_keeping_all_leaves_none(model, family):
    moments = collect_moments(model, calibrate(family)(), ENOUGH)
    name, stack = next(iter(find_stacks(model).items()))
    weights, m = stack.sublayers[1].read(), moments[name][1]
    kept = torch.arange(0, 24, 3)
    before = measure_error(weights, select(weights, kept), kept, m)
    after = measure_error(weights, refit_output(weights, m, kept, ridge=1e-9), kept, m)
    assert 0 < after < before
    everything = torch.arange(24)
    assert measure_error(weights, select(weights, everything), everything, m) == 0


def test_the_surgeon_at_the_usual_ridge_is_the_method(model, family):
    moments = collect_moments(model, calibrate(family)(), ENOUGH)
    plan = list_neuron_plans(model, 2 * len(find_stacks(model)))[0]
    ours = prune_by_surgeon(model, plan, moments)
    method = prune(model, plan, score_surgeon(model, moments), moments)
    assert ours.plan == method.plan and set(ours.tensors) == set(method.tensors)
    assert all(torch.equal(ours.tensors[name], method.tensors[name]) for name in ours.tensors)


def test_in_turn_the_first_layer_is_as_in_one_pass_and_nothing_removed_changes_nothing(
    model, family
):
    stacks, batch = find_stacks(model), make_batch(family)
    whole = Plan(neurons={name: (24,) * LAYERS for name in stacks})
    kept = prune_in_turn(model, whole, calibrate(family), TOKENS)
    assert torch.equal(logits(kept, batch), logits(model, batch))
    name = next(iter(stacks))
    plan = Plan(neurons={name: (24, *(12,) * (LAYERS - 1))})
    turned = find_stacks(prune_in_turn(model, plan, calibrate(family), ENOUGH))[name].sublayers
    moments = collect_moments(model, calibrate(family)(), ENOUGH)
    once = find_stacks(apply_patch(model, prune_by_surgeon(model, plan, moments)))[name].sublayers
    assert [ff.d_ff for ff in turned] == list(plan.neurons[name])
    torch.testing.assert_close(turned[1].read().W_out, once[1].read().W_out)
    assert not torch.equal(turned[3].read().W_out, once[3].read().W_out)


def test_uncorrelated_rows_are_taken_by_what_they_give():
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(8, dtype=torch.float64, generator=generator) + 0.5
    G, W = torch.diag(spread), torch.randn(8, 3, dtype=torch.float64, generator=generator)
    gain = (G @ W).square().sum(1) / spread
    assert torch.equal(take_greedily(G, G @ W, 8, ridge=0), gain.argsort(descending=True))


def test_each_row_taken_lowers_the_error_most():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, dtype=torch.float64, generator=generator).cumsum(1)
    y = x @ torch.randn(6, 2, dtype=torch.float64, generator=generator)
    G, B = x.T @ x, x.T @ y

    def error(rows):
        return (y - x[:, rows] @ torch.linalg.lstsq(x[:, rows], y).solution).square().sum()

    order = take_greedily(G, B, 4, ridge=0).tolist()
    for k, row in enumerate(order):
        others = [i for i in range(6) if i not in order[:k]]
        assert row == min(others, key=lambda i: error([*order[:k], i]))


def test_elimination_lets_all_merged_neurons_go_first(model, family):
    """Whatever the model: private ones give both outputs exactly."""
    for pools in pool(model, family).values():
        for found in pools:
            assert int(found.keep(48)[2].numel()) <= 2
            assert measure_pool(found, 48) < 1e-3


def test_identical_neighbours_share_if_one_starts_from_none(model, family):
    for stack in find_stacks(model).values():
        for a in range(0, len(stack), 2):
            stack.sublayers[a + 1].write(stack.sublayers[a].read())
    for pools in pool(model, family).values():
        for found in pools:
            shared, private = reselect(found, 12), reselect(found, 12, sharing=False)
            assert len(shared.keep(12)[2]) >= 6 and len(private.keep(12)[2]) == 0
            assert measure_pool(shared, 12) < measure_pool(private, 12)
            assert sum(len(part) for part in shared.keep(12)) == 12


def test_private_biases_bring_every_mean_back(family, model):
    stacks, calibration = find_stacks(model), calibrate(family)
    plan = list_window_plans(find_depths(model), 2 * len(stacks))[1]
    small = apply_patch(model, find_method("vanilla").make(model, plan, Evidence()))
    before = copy.deepcopy(small.state_dict())
    if stacks[next(iter(stacks))].sublayers[0].read().b_out is None:
        with pytest.raises(ValueError, match=r"has no b_out; valid is a model with biases"):
            untie_biases(model, small, plan.groups, calibration(), TOKENS)
        return
    own = untie_biases(model, small, plan.groups, calibration(), TOKENS)
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in before.items())
    name = next(iter(stacks))
    i = plan.groups[name][0].layers[0]  # what it reads is what the base's reads
    wanted, found = (collect_outputs(m, calibration(), TOKENS)[0][name][i] for m in (model, own))
    torch.testing.assert_close(found.mean(0), wanted.mean(0), atol=1e-4, rtol=1e-4)
    first, second = (find_stacks(own)[name].sublayers[j].read() for j in (i, i + 1))
    assert torch.equal(first.W_out, second.W_out) and not torch.equal(first.b_out, second.b_out)
    louder = untie_biases(model, small, plan.groups, calibration(), TOKENS, spread=True)
    (found,) = collect_outputs(louder, calibration(), TOKENS)[0][name][i : i + 1]
    torch.testing.assert_close(found.mean(0), wanted.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.var(0).sum(), wanted.var(0).sum(), atol=1e-6, rtol=1e-3)


def test_regression_brings_a_shared_sublayer_nearer_to_what_the_base_puts_out(family, model):
    plan = list_window_plans(find_depths(model), 2 * len(find_stacks(model)))[1]
    start = find_method("vanilla").make(model, plan, Evidence())
    fitted = regress_groups(model, start, calibrate(family), steps=30, tokens=TOKENS)
    places = {(n, i) for n, groups in plan.groups.items() for g in groups for i in g.layers}
    activation = learn_activation(model, make_batch(family))
    read = collect_inputs(model, calibrate(family)(), TOKENS, places)

    def measure(patch):
        small, lost = find_stacks(apply_patch(model, patch)), 0.0
        for (name, i), x in read.items():
            both = (of[name].sublayers[i].read() for of in (find_stacks(model), small))
            wanted, found = (compute_output(weights, x, activation) for weights in both)
            lost += float((found - wanted).square().sum() / wanted.var())
        return lost

    assert measure(fitted) < 0.95 * measure(start)


def test_a_sublayer_whose_partner_gets_all_keeps_a_neuron_that_says_nothing(model, family):
    pools = {
        name: [replace(one, step=torch.arange(len(one.step)).flip(0).double()) for one in ones]
        for name, ones in pool(model, family).items()
    }
    (even,) = list_neuron_plans(model, len(pools) * LAYERS // 2)
    patch = fit_pools(model, even, pools)
    stacks = find_stacks(apply_patch(model, patch))
    for name, ones in pools.items():
        for one in ones:
            a, b = one.pair
            width = 2 * even.neurons[name][a]
            assert patch.plan.neurons[name][a] == width and patch.plan.neurons[name][b] == 1
            assert not stacks[name].sublayers[b].read().W_out.any()
