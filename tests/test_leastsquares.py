"""What neurons are worth, what W_out can make up for, and which sublayers should share."""

import copy
from functools import cache
from itertools import combinations, pairwise, product

import pytest
import torch
from families import (
    LAYERS,
    MAKERS,
    VOCABULARY,
    make_batch,
    make_evidence,
    make_labelled,
    make_model,
)
from transformers import OPTConfig, OPTForCausalLM

from ffmerge.activations import observe
from ffmerge.compression import compress
from ffmerge.groups import Group
from ffmerge.importance import (
    find_order,
    order_by_surgeon,
    price_neurons,
    score_gradients,
    score_magnitudes,
    score_surgeon,
)
from ffmerge.leastsquares import refit_output, second_moments
from ffmerge.moments import RunningMoments, collect_moments
from ffmerge.partitions import partition_freely, partition_neighbours
from ffmerge.patches import Plan, apply_patch
from ffmerge.pooling import Pool, fit_pair, join_pair
from ffmerge.pruning import keep_highest, list_neuron_plans, prune, spread_neurons
from ffmerge.refitting import compute_hidden, read_inputs, refit_groups
from ffmerge.streams import measure_turns
from ffmerge.sublayers import find_activation, find_stacks
from ffmerge.weights import Weights, select

FAMILIES = pytest.mark.parametrize("family", MAKERS)
BIASES = pytest.mark.parametrize("has_bias", [True, False])
N, D_FF, D_MODEL = 200, 10, 6


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_hidden(n=N, d=D_FF, seed=0):
    """Activations (n, d) that vary together, some of them much, and whose mean is not 0."""
    return draw(n, d, seed=seed) @ draw(d, d, seed=seed + 1) + draw(d, seed=seed + 2)


def make_weights(has_bias, seed=0, d=D_FF):
    biases = {"b_in": draw(d, seed=seed + 5), "b_out": draw(D_MODEL, seed=seed + 6)}
    W_in, W_out = draw(d, D_MODEL, seed=seed + 3), draw(D_MODEL, d, seed=seed + 4)
    return Weights(W_in, W_out, **(biases if has_bias else {}))


def take(rows, chunks=(N,)):
    running = RunningMoments()
    for chunk in rows.split(list(chunks)):
        running.update(chunk)
    return running.value()


def compute(weights, hidden):
    return hidden @ weights.W_out.T + (0 if weights.b_out is None else weights.b_out)


def measure_error(weights, small, hidden, kept):
    return float((compute(weights, hidden) - compute(small, hidden[:, kept])).square().sum())


def test_moments_of_odd_chunks_are_those_of_one_pass():
    rows = make_hidden() + 100
    moments = take(rows, (1, 7, 0, 2, 90, 100))
    assert moments.n == N
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.covariance, torch.cov(rows.T, correction=0))


@BIASES
def test_refitting_is_least_squares_on_the_raw_activations(has_bias):
    weights, hidden, kept = make_weights(has_bias), make_hidden(), torch.tensor([0, 3, 4, 8])
    small = refit_output(weights, take(hidden), kept, ridge=0)
    ones = torch.ones(N, has_bias, dtype=torch.float64)
    regressors = torch.cat([hidden[:, kept], ones], 1)
    solution = torch.linalg.lstsq(regressors, compute(weights, hidden)).solution
    torch.testing.assert_close(small.W_out, solution[:4].T)
    assert torch.equal(small.W_in, weights.W_in[kept])
    if has_bias:
        torch.testing.assert_close(small.b_out, solution[4])


@BIASES
def test_keeping_all_neurons_changes_nothing(has_bias):
    weights = make_weights(has_bias)
    same = refit_output(weights, take(make_hidden()), torch.arange(D_FF), ridge=1e-12)
    for name, value in vars(weights).items():
        torch.testing.assert_close(getattr(same, name), value, atol=1e-6, rtol=1e-6)


@BIASES
@pytest.mark.parametrize("seed", range(5))
def test_least_squares_never_errs_more_than_keeping_the_weights(has_bias, seed):
    weights, hidden = make_weights(has_bias, seed), make_hidden(seed=seed)
    for kept in (torch.arange(n) for n in range(1, D_FF)):
        small = refit_output(weights, take(hidden), kept, ridge=0)
        plain = measure_error(weights, select(weights, kept), hidden, kept)
        assert measure_error(weights, small, hidden, kept) <= plain * (1 + 1e-9)


def test_neurons_that_never_change_are_no_trouble():
    weights = make_weights(True)
    small = refit_output(weights, take(0 * make_hidden() + 1), torch.tensor([1, 2]))
    torch.testing.assert_close(
        small.b_out + small.W_out.sum(1), compute(weights, 1 + 0 * draw(D_FF))
    )


def test_uncorrelated_neurons_of_equal_spread_go_in_the_order_of_their_norms():
    rows = torch.linalg.qr(draw(N, D_FF) - draw(N, D_FF).mean(0)).Q  # centred, orthonormal
    weights = make_weights(True)
    step, price = order_by_surgeon(weights, take(rows), ridge=0)
    norms = weights.W_out.norm(dim=0)
    assert torch.equal(step.argsort(), norms.argsort())
    torch.testing.assert_close(price, norms.square() / N)


@pytest.mark.parametrize("seed", range(3))
def test_the_surgeon_removes_what_least_squares_misses_least_and_names_its_price(seed):
    """Against trying every neuron at every step: the sum of its updates is least squares."""
    weights, hidden = make_weights(True, seed), make_hidden(seed=seed)
    moments, left, errors = take(hidden), list(range(D_FF)), [0.0]
    step, price = order_by_surgeon(weights, moments, ridge=0)
    for j in step.argsort()[: D_FF - 1].tolist():

        def remove(i):
            kept = torch.tensor([k for k in left if k != i])
            small = refit_output(weights, moments, kept, ridge=0)
            return measure_error(weights, small, hidden, kept) / N

        added = {i: remove(i) - errors[-1] for i in left}
        assert min(added, key=added.get) == j
        errors.append(remove(j))
        highest = max(b - a for a, b in pairwise(errors))
        assert float(price[j]) == pytest.approx(highest, rel=1e-6)
        left.remove(j)


@FAMILIES
def test_prices_never_fall(family):
    model = make_model(family)
    moments = collect_moments(model, make_evidence(family).calibration())
    orders, prices = score_surgeon(model, moments), price_neurons(model, moments)
    for name, layers in prices.items():
        for step, price in zip(orders[name], layers, strict=True):
            assert (price[step.argsort()].diff() >= 0).all() and (price > 0).all()


@FAMILIES
def test_the_surgeons_neurons_give_back_more_than_those_of_the_largest_weights(family):
    model = make_model(family)
    moments = collect_moments(model, make_evidence(family).calibration())
    orders = {"obs": score_surgeon(model, moments), "magnitude": score_magnitudes(model)}
    for name, stack in find_stacks(model).items():
        for i, ff in enumerate(stack.sublayers):
            weights, m, errors = ff.read(), moments[name][i], {}
            for order, scores in orders.items():
                kept = keep_highest(scores[name][i], ff.d_ff // 2)
                missed = weights.W_out.double().clone()  # W_out less what the kept ones do
                missed[:, kept] -= refit_output(weights, m, kept).W_out.double()
                errors[order] = float((missed @ second_moments(weights, m) * missed).sum())
            assert errors["obs"] < errors["magnitude"]


@FAMILIES
def test_one_budget_keeps_as_many_neurons_in_all_and_one_everywhere(family):
    model = make_model(family)
    (even,) = list_neuron_plans(model, len(find_stacks(model)))
    prices = {n: [torch.arange(24.0) * 10**i for i in range(LAYERS)] for n in even.neurons}
    plan = spread_neurons(even, prices)
    for name, widths in plan.neurons.items():
        assert sum(widths) == sum(even.neurons[name]) and min(widths) >= 1
        assert list(widths) == sorted(widths) and widths[0] < widths[-1]  # where it is worth most
    least = Plan(neurons={"decoder": (1, 1, 1)})
    assert spread_neurons(least, {"decoder": [draw(9, seed=i) for i in range(3)]}) == least


@FAMILIES
def test_a_plan_that_keeps_all_neurons_touches_nothing(family):
    model = make_model(family)
    whole = Plan(neurons=dict.fromkeys(find_stacks(model), (24,) * LAYERS))
    assert prune(model, whole, score_magnitudes(model)).tensors == {}


@cache
def watch(family):
    """What every FF sublayer of a model reads, and what its W_out reads."""
    model, seen = make_model(family), {}
    places = [
        lambda stack, i: (stack.sublayers[i].module("W_in"), True),
        lambda stack, i: (stack.sublayers[i].module("W_out"), True),
    ]
    observe(
        model,
        [make_batch(family, padded=True)],
        2,
        places,
        lambda *key: seen.update([(key[:3], key[3])]),
    )
    return model, seen


@FAMILIES
def test_hidden_activations_computed_alone_are_those_of_the_model(family):
    model, seen = watch(family)
    for name, stack in find_stacks(model).items():
        for i, ff in enumerate(stack.sublayers):
            hidden = compute_hidden(ff.read(), seen[0, name, i], find_activation(model))
            torch.testing.assert_close(hidden, seen[1, name, i])


@FAMILIES
def test_moments_are_those_of_what_w_out_reads(family):
    model, seen = watch(family)
    moments = collect_moments(model, [make_batch(family, padded=True)], tokens=2)
    for (place, name, i), rows in seen.items():
        if place == 1:
            expected = torch.cov(rows.double().T, correction=0)
            assert moments[name][i].n == len(rows)
            torch.testing.assert_close(moments[name][i].covariance, expected, atol=1e-6, rtol=1e-4)


@FAMILIES
def test_refitting_identical_sublayers_returns_the_model(family):
    model = make_model(family)
    for stack in find_stacks(model).values():
        for ff in stack.sublayers[1:]:
            ff.write(stack.sublayers[0].read())
    plan = Plan(dict.fromkeys(find_stacks(model), (Group((0, 1, 3), 1),)))
    calibration = make_evidence(family).calibration
    patch = refit_groups(model, plan, {}, calibration, ridge=1e-7)
    read = read_inputs(model, calibration())  # of all sublayers, for every candidate
    again = refit_groups(model, plan, {}, calibration, ridge=1e-7, read=read)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in patch.tensors.items())
    small, batch = apply_patch(model, patch), make_batch(family, seed=9)
    with torch.no_grad():
        torch.testing.assert_close(
            small(**batch).logits, model(**batch).logits, atol=1e-3, rtol=1e-3
        )


@FAMILIES
def test_least_squares_are_the_same_from_disk_and_from_a_second_run(family, monkeypatch):
    model, found = make_model(family), []
    plan = Plan(dict.fromkeys(find_stacks(model), (Group((0, 1, 3), 1),)))
    for budget in (10**9, 0):
        monkeypatch.setattr("ffmerge.refitting.BUDGET", budget)
        calibration = make_evidence(family).calibration
        read = read_inputs(model, calibration())
        assert (read.observe is observe) == (budget == 0)
        found.append(refit_groups(model, plan, {}, calibration, read=read).tensors)
    assert all(torch.equal(found[1][name], tensor) for name, tensor in found[0].items())


def test_taylor_and_regression_do_not_lose_themselves_in_half_precision():
    model, batch = make_model("gpt2"), make_labelled("gpt2")
    half = copy.deepcopy(model).half()
    scores = (score_gradients(each, [batch], tokens=1)["decoder"][1] for each in (model, half))
    assert torch.equal(*(score.topk(8).indices.sort().values for score in scores))
    small = compress(half, "groups_local", 1, [batch] * 20)
    assert all(p.dtype == torch.float16 and p.isfinite().all() for p in small.parameters())


def test_taylor_reads_sublayers_that_flatten_their_tokens():
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = OPTConfig(**sizes, vocab_size=VOCABULARY, word_embed_proj_dim=16)
    scores = score_gradients(OPTForCausalLM(config), [make_labelled("gpt2")], tokens=1)
    assert all(score.shape == (24,) and score.any() for score in scores["decoder"])


@FAMILIES
def test_a_neuron_that_leads_nowhere_has_no_taylor_score(family):
    model = make_model(family)
    for stack in find_stacks(model).values():
        weights = stack.sublayers[1].read()
        weights.W_out[:, 5] = 0
        stack.sublayers[1].write(weights)
    scores = score_gradients(model, [make_labelled(family, padded=True)], tokens=1)
    for layers in scores.values():
        assert layers[1][5] == 0 and (layers[1] > 0).sum() == 23
        assert all(score.shape == (24,) and score.isfinite().all() for score in layers)
    assert all(p.grad is None for p in model.parameters())


def test_taylor_scores_leave_gradients_alone_and_need_none_of_the_weights():
    model, batch = make_model("gpt2"), make_labelled("gpt2")
    model(**batch).loss.backward()
    before = [p.grad.clone() for p in model.parameters()]
    scores = score_gradients(model, [batch], tokens=1)["decoder"]
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    with torch.no_grad():
        frozen = score_gradients(model.requires_grad_(False), [batch], tokens=1)["decoder"]
    assert all(map(torch.equal, frozen, scores))


def test_taylor_scores_need_a_loss():
    with pytest.raises(ValueError, match="batches have no labels; valid are batches with a loss"):
        score_gradients(make_model("gpt2"), [make_batch("gpt2")], tokens=1)


@pytest.mark.parametrize("family", ["vit", "gpt2", "olmo", "llama"])  # they add to the stream
def test_a_layer_that_adds_nothing_does_not_turn_the_stream(family):
    model = make_model(family)
    (stack,) = find_stacks(model).values()
    for module in (stack.attention_outputs()[2], stack.sublayers[2].module("W_out")):
        for parameter in module.parameters():
            parameter.data.zero_()
    batches = [make_batch(family, padded=True)]
    (influence,) = measure_turns(model, batches, lambda cosine: 1 - cosine).values()
    (angle,) = measure_turns(model, batches, torch.arccos).values()
    assert int(influence.argmin()) == int(angle.argmin()) == 2
    assert abs(float(influence[2])) < 1e-6 < influence[[0, 1, 3]].min()
    assert float(angle[2]) < 1e-3 < angle[[0, 1, 3]].min()
    assert measure_turns(model, batches, torch.arccos, n=3)[stack.name].shape == (2,)


def make_costs(seed, n):
    pairs = [(a, b) for a in range(n) for b in range(n) if a != b]
    return dict(zip(pairs, draw(len(pairs), seed=seed).exp().tolist(), strict=True))


def add_up(costs, groups):
    return sum(costs[g.anchor, i] for g in groups for i in g.others)


def list_runs(n, removed):
    """Every way to cut n layers into n - removed runs, as groups."""
    for cuts in combinations(range(1, n), n - removed - 1):
        runs = [tuple(range(a, b)) for a, b in pairwise((0, *cuts, n))]
        yield [Group(run, run[0]) for run in runs if len(run) > 1]


@pytest.mark.parametrize("removed", range(1, 6))
@pytest.mark.parametrize("seed", range(3))
def test_the_best_runs_of_neighbours_are_found(seed, removed):
    costs = make_costs(seed, 6)
    groups = partition_neighbours(costs, 6, removed)
    best = min(add_up(costs, groups) for groups in list_runs(6, removed))
    assert sum(len(g.others) for g in groups) == removed
    assert add_up(costs, groups) == pytest.approx(best)


@pytest.mark.parametrize("removed", range(1, 5))
@pytest.mark.parametrize("seed", range(3))
def test_the_best_groups_of_any_sublayers_are_found(seed, removed):
    costs = make_costs(seed, 5)
    groups = partition_freely(costs, 5, removed)
    best = min(
        sum(costs[a, b] for a, b in zip(anchors, gone, strict=True))
        for gone in combinations(range(5), removed)
        for anchors in product([i for i in range(5) if i not in gone], repeat=removed)
    )
    members = [i for g in groups for i in g.layers]
    assert sum(len(g.others) for g in groups) == removed and len(set(members)) == len(members)
    assert add_up(costs, groups) == pytest.approx(best)


@pytest.mark.parametrize("choose", [partition_neighbours, partition_freely])
def test_pairs_that_were_never_aligned_do_not_share(choose):
    costs = {(2, 3): 5.0, (0, 1): 1.0}
    assert choose(costs, 4, 1) == (Group((0, 1), 0),)
    assert choose(costs, 4, 2) == (Group((0, 1), 0), Group((2, 3), 2))
    with pytest.raises(ValueError, match="no groups remove 3 sublayers"):
        choose(costs, 4, 3)


@BIASES
def test_a_pool_whose_merged_neurons_are_dead_is_the_surgeon_over_both_sublayers(has_bias):
    weights = tuple(make_weights(has_bias, seed) for seed in (0, 10, 20))
    own = [make_hidden(seed=seed) for seed in (30, 40)]
    dead = [torch.cat([rows, torch.zeros_like(rows)], 1) for rows in own]
    G, B = join_pair(weights, tuple(map(take, dead)))
    step, _ = find_order(G, B, ridge=1e-12)
    pool = Pool((0, 1), weights, tuple(map(take, dead)), step)
    n = 2 * D_FF
    alone, _ = find_order(G[:n, :n], B[:n], ridge=1e-12)
    for n_kept in (3, 9, 15):
        kept = pool.keep(n_kept)
        assert len(kept[2]) == 0
        places = torch.cat([kept[0], kept[1] + D_FF])
        assert torch.equal(places, alone.argsort()[-n_kept:].sort().values)
        for part, fitted in enumerate(fit_pair(pool, n_kept, ridge=1e-12)):
            expected = refit_output(weights[part], take(own[part]), kept[part], ridge=1e-12)
            torch.testing.assert_close(fitted.W_out, expected.W_out, atol=1e-6, rtol=1e-6)
            if has_bias:
                torch.testing.assert_close(fitted.b_out, expected.b_out, atol=1e-6, rtol=1e-6)


def test_a_pool_of_identical_sublayers_merges_and_loses_nothing():
    weights, hidden = make_weights(True), make_hidden()
    moments = take(torch.cat([hidden, hidden], 1))  # the merged neurons are those of both
    G, B = join_pair((weights,) * 3, (moments,) * 2)
    pool = Pool((0, 1), (weights,) * 3, (moments,) * 2, find_order(G, B, ridge=1e-9)[0])
    assert [len(part) for part in pool.keep(D_FF)] == [0, 0, D_FF]
    for fitted in fit_pair(pool, D_FF, ridge=1e-12):
        torch.testing.assert_close(fitted.W_out, weights.W_out, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(fitted.b_out, weights.b_out, atol=1e-6, rtol=1e-6)
