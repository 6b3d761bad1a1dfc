"""Which sublayers should share: several groups in the place of one window (reviewers 1 and 4).

A group costs what its members lose: the error of each one's output, if it is computed by its
average with the group's anchor. The best partition into runs of neighbours follows by dynamic
programming, the best one without that bound by trying all sets of anchors.
"""

from collections.abc import Callable, Iterable
from itertools import combinations
from math import comb

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ffmerge.activations import Batch, peek
from ffmerge.groups import Group
from ffmerge.methods import Evidence
from ffmerge.pairs import Pairs, select_permutations
from ffmerge.patches import Plan
from ffmerge.refitting import collect_inputs, compute_output, learn_activation
from ffmerge.sublayers import find_depths, find_stacks
from ffmerge.weights import average, permute

TOKENS = 2_000  # of each sublayer's inputs, on which pairs are tried
MOST = 50_000  # sets of anchors that are tried
Costs = dict[tuple[int, int], float]  # (anchor, other): what it costs that the two share


def measure_costs(
    model: nn.Module, permutations: Pairs, batches: Iterable[Batch], tokens: int = TOKENS
) -> dict[str, Costs]:
    """What each pair of sublayers of a stack loses if the two share their aligned average.

    The squared error of both outputs over each one's variance, on what each one reads.

    Args:
        model: the base; left as it is.
        permutations: of the pairs to try; others cannot share.
        batches: calibration data.
        tokens: how many to see.

    Returns:
        costs[stack][a, b], for b aligned to a.
    """
    first, batches = peek(batches)
    stacks, activation = find_stacks(model), learn_activation(model, first)
    keys = {(name, i) for name, stack in stacks.items() for i in range(len(stack))}
    inputs = collect_inputs(model, batches, tokens, keys)
    costs: dict[str, Costs] = {name: {} for name in stacks}
    for name, stack in stacks.items():
        weights = [ff.read() for ff in stack.sublayers]
        outputs = [compute_output(w, inputs[name, i], activation) for i, w in enumerate(weights)]
        pairs = [(a, b) for a in range(len(stack)) for b in range(len(stack)) if a != b]
        for a, b in tqdm(pairs, f"pairs of the {name}", unit="pair"):
            try:
                group = {name: (Group(tuple(sorted((a, b))), a),)}
                p = select_permutations(permutations, group)[name][b]
            except ValueError:  # never aligned
                continue
            merged = average([weights[a], permute(weights[b], p)])
            costs[name][a, b] = sum(
                float(_relate(compute_output(merged, inputs[name, i], activation), outputs[i]))
                for i in (a, b)
            )
    return costs


def partition_neighbours(costs: Costs, n_layers: int, removed: int) -> tuple[Group, ...]:
    """The cheapest groups of adjacent sublayers that remove as many, by dynamic programming.

    Args:
        costs: of one stack.
        n_layers: its depth.
        removed: how many sublayers go.

    Raises:
        ValueError: no such groups among the pairs of known cost.
    """
    best: dict[tuple[int, int], tuple[float, tuple[Group, ...]]] = {(0, 0): (0.0, ())}
    for end in range(1, n_layers + 1):
        for gone in range(removed + 1):
            options = []
            for k in range(1, min(end, gone + 1) + 1):  # the last group has k sublayers
                start = end - k
                known = best.get((start, gone - k + 1))
                if known is not None:
                    cost = sum(costs.get((start, i), torch.inf) for i in range(start + 1, end))
                    group = (Group(tuple(range(start, end)), start),) if k > 1 else ()
                    options.append((known[0] + cost, known[1] + group))
            if options:
                best[end, gone] = min(options, key=lambda option: option[0])
    return _check(best.get((n_layers, removed), (torch.inf, ())), removed)


def partition_freely(costs: Costs, n_layers: int, removed: int) -> tuple[Group, ...]:
    """The cheapest groups of any sublayers: each that goes shares with its cheapest anchor.

    Args:
        costs, n_layers, removed: as in `partition_neighbours`.

    Raises:
        ValueError: no such groups, or more than `MOST` sets of anchors to try.
    """
    n_sets = comb(n_layers, removed)
    if n_sets > MOST:
        raise ValueError(
            f"{removed} of {n_layers} sublayers can go in {n_sets:,} ways; valid are at most "
            f"{MOST:,}"
        )
    best: tuple[float, tuple[Group, ...]] = (torch.inf, ())
    for gone in combinations(range(n_layers), removed):
        anchors = [i for i in range(n_layers) if i not in gone]
        nearest = {b: min(anchors, key=lambda a, b=b: costs.get((a, b), torch.inf)) for b in gone}
        cost = sum(costs.get((a, b), torch.inf) for b, a in nearest.items())
        if cost < best[0]:
            members = {a: sorted([a, *(b for b in gone if nearest[b] == a)]) for a in anchors}
            groups = tuple(Group(tuple(m), a) for a, m in members.items() if len(m) > 1)
            best = cost, groups
    return _check(best, removed)


def list_group_plans(
    model: nn.Module,
    count: int,
    evidence: Evidence,
    choose: Callable[[Costs, int, int], tuple[Group, ...]],
) -> list[Plan]:
    """The one plan whose groups remove `count` sublayers at the least cost, alike in all stacks.

    Args:
        model: the base.
        count: how many sublayers go.
        evidence: permutations, and calibration data for the costs.
        choose: `partition_neighbours` or `partition_freely`.
    """
    costs = evidence.once(
        "costs", lambda: measure_costs(model, evidence.permutations, evidence.calibration())
    )
    depths = find_depths(model)
    groups = {name: choose(costs[name], n, count // len(depths)) for name, n in depths.items()}
    return [Plan(groups)]


def _relate(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over variance."""
    return (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()


def _check(best: tuple[float, tuple[Group, ...]], removed: int) -> tuple[Group, ...]:
    if best[0] == torch.inf:
        raise ValueError(
            f"no groups remove {removed} sublayers; valid is a number that the aligned pairs allow"
        )
    return best[1]
