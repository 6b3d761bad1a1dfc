import pytest
import torch
from families import make_model

from ffmerge.catalogue import describe_method, list_methods
from ffmerge.groups import Group, list_pairs, list_windows, window
from ffmerge.methods import Evidence, find_method
from ffmerge.selection import choose, score_plans, shuffle_others
from ffmerge.similarity import cka, cka_matrix


def test_windows_are_all_runs_of_k_adjacent_layers():
    assert list_windows(12, 12) == [tuple(range(12))]
    assert len(list_windows(12, 5)) == 8 and list_windows(12, 5)[3] == (3, 4, 5, 6, 7)


@pytest.mark.parametrize("k", [0, 13])
def test_a_window_that_does_not_fit_is_refused(k):
    with pytest.raises(ValueError, match=f"k = {k} layers do not fit a stack of 12"):
        list_windows(12, k)


def test_a_pair_and_its_reverse_are_one_problem():
    assert list_pairs([window(0, 3)]) == [(0, 1), (0, 2), (0, 3)]
    groups = [
        w.anchored(anchor) for w in (window(0, 2), window(1, 3)) for anchor in ("first", "last")
    ]
    assert list_pairs(groups) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]
    assert list_pairs([Group((0, 5, 7), 5)]) == [(0, 5), (5, 7)]
    windows = [Group(w, w[0]) for k in (5, 7, 12) for w in list_windows(12, k)]
    assert len(list_pairs(windows)) == 49 and all(a < b for a, b in list_pairs(windows))


@pytest.mark.parametrize("method", ["vanilla", "permute"])
def test_candidates_of_a_method_that_shares_are_windows_in_sync(method):
    plans = find_method(method).list_plans(make_model("marian"), 4, Evidence())
    assert [str(plan) for plan in plans] == ["0-2", "1-3"]
    assert all(plan.groups["encoder"] == plan.groups["decoder"] for plan in plans)


def test_candidates_of_drop_are_runs_of_layers():
    plans = find_method("drop").list_plans(make_model("marian"), 4, Evidence())
    assert [str(plan) for plan in plans] == ["0-1", "1-2", "2-3"]
    plans = find_method("drop").list_plans(make_model("gpt2"), 1, Evidence())
    assert [str(plan) for plan in plans] == ["0", "1", "2", "3"]


def test_every_method_says_what_it_is_and_looks_like_no_other():
    about = [describe_method(name) for name in list_methods()]
    assert {a.name for a in about} >= {"vanilla", "permute", "drop"}
    for a in about:
        found = find_method(a.name)
        assert (a.family, a.removes, a.needs) == (found.FAMILY, found.REMOVES, found.NEEDS)
        assert a.what.endswith(".") and a.reference and set(a.look) == {"label", "color", "marker"}
    looks, labels = (
        {(a.look["color"], a.look["marker"]) for a in about},
        {a.look["label"] for a in about},
    )
    assert len(looks) == len(labels) == len(about)


def test_the_best_candidate_follows_the_metric_and_ties_go_to_the_earliest():
    plans = find_method("drop").list_plans(make_model("gpt2"), 1, Evidence())
    scores = score_plans(plans, lambda plan: plan, lambda plan: float(str(plan) == "1"))
    assert scores == [0.0, 1.0, 0.0, 0.0]
    assert choose(scores, higher_is_better=True) == 1
    assert choose(scores, higher_is_better=False) == 0


def test_the_other_candidates_are_shuffled_reproducibly():
    drawn = shuffle_others(8, best=4, seed=0)
    assert drawn == shuffle_others(8, best=4, seed=0) == [2, 5, 3, 7, 6, 0, 1]
    assert sorted(drawn) == [0, 1, 2, 3, 5, 6, 7]
    assert any(shuffle_others(8, best=4, seed=seed) != drawn for seed in range(1, 5))


def test_cka_is_one_for_rotations_and_near_zero_for_strangers():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=generator)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    assert cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    assert cka(x, torch.randn(500, 8, generator=generator)) < 0.05
    assert cka(x, torch.ones(500, 3)) == 0


def test_cka_matches_the_kernel_definition():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(30, d, generator=generator).double() for d in (4, 6))
    center = torch.eye(30, dtype=torch.float64) - 1 / 30
    K, L = center @ x @ x.T @ center, center @ y @ y.T @ center
    expected = (K * L).sum() / (K.norm() * L.norm())
    matrix = cka_matrix([x, y], progress=False)
    assert matrix[0, 1] == pytest.approx(float(expected)) and torch.equal(matrix, matrix.T)
