import pytest
import torch

from ffmerge.selection import (
    choose_window,
    find_anchor,
    format_window,
    list_pairs,
    list_windows,
    parse_window,
    sample_windows,
    score_windows,
)
from ffmerge.similarity import cka, cka_matrix


def test_windows_are_all_runs_of_k_adjacent_layers():
    assert list_windows(12, 12) == [(0, 11)]
    assert len(list_windows(12, 5)) == 8 and list_windows(12, 5)[3] == (3, 7)
    assert parse_window(format_window((3, 7))) == (3, 7)


@pytest.mark.parametrize("k", [0, 13])
def test_a_window_that_does_not_fit_is_refused(k):
    with pytest.raises(ValueError, match=f"k = {k} layers do not fit a stack of 12"):
        list_windows(12, k)


def test_a_pair_and_its_reverse_are_one_problem():
    assert list_pairs([(0, 3)]) == [(0, 1), (0, 2), (0, 3)]
    assert list_pairs([(0, 2), (1, 3)], ["first", "last"]) == [
        (0, 1),
        (0, 2),
        (1, 2),
        (1, 3),
        (2, 3),
    ]
    windows = [w for k in (5, 7, 12) for w in list_windows(12, k)]
    assert len(list_pairs(windows)) == 49 and all(a < b for a, b in list_pairs(windows))


def test_anchors_are_layer_indices():
    assert [find_anchor((3, 7), a) for a in ("first", "middle", "last")] == [3, 5, 7]
    assert find_anchor((4, 7), "middle") == 5


def test_the_best_window_follows_the_metric_and_ties_go_to_the_earliest():
    scores = score_windows([(0, 1), (1, 2), (2, 3)], lambda w: w, lambda w: float(w[0] % 2))
    assert scores == {(0, 1): 0.0, (1, 2): 1.0, (2, 3): 0.0}
    assert choose_window(scores, higher_is_better=True) == (1, 2)
    assert choose_window(scores, higher_is_better=False) == (0, 1)


def test_random_windows_are_distinct_reproducible_and_not_the_best():
    windows = list_windows(12, 5)
    drawn = sample_windows(windows, 3, seed=0, best=(4, 8))
    assert drawn == sample_windows(windows, 3, seed=0, best=(4, 8))
    assert len(set(drawn)) == 3 and (4, 8) not in drawn
    assert any(sample_windows(windows, 3, seed, (4, 8)) != drawn for seed in range(1, 5))
    with pytest.raises(ValueError, match="8 random windows were asked for; valid are 0-7"):
        sample_windows(windows, 8, seed=0, best=(4, 8))


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
