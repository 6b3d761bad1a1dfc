"""One pool of neurons: those of each sublayer and merged ones, chosen by one second-order rule.

A pair of sublayers may keep a neuron of the one, of the other, or one that both run, the average of
two aligned ones. Each costs the same to store: a row of W_in, a column of W_out. So merging and
pruning are the two corners of one choice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ffmerge.activations import Batch, peek
from ffmerge.groups import Group
from ffmerge.importance import find_order
from ffmerge.leastsquares import RIDGE, second_moments, solve_ridge
from ffmerge.moments import Key, Moments, find_inputs, gather_moments
from ffmerge.pairs import Pairs, select_permutations
from ffmerge.patches import Patch, Plan, check_plan
from ffmerge.refitting import compute_hidden, learn_activation
from ffmerge.sublayers import find_stacks
from ffmerge.weights import Weights, average, permute, select


@dataclass(frozen=True)
class Pool:
    """What was chosen for one pair of sublayers, in the order in which neurons would go.

    Attributes:
        pair: the layers a and b; neurons are numbered a's, b's, merged: 0 to 3 d_ff - 1.
        weights: of a, of b (in its own order), and of the merged neurons.
        moments: of the hidden activations: [a's, merged on a's input], [b's, merged on b's input].
        step: (3 d_ff,), the step at which each neuron goes.
    """

    pair: tuple[int, int]
    weights: tuple[Weights, Weights, Weights]
    moments: tuple[Moments, Moments]
    step: Tensor

    def find_last(self, n: int) -> Tensor:
        """The n neurons that go last, by their numbers: (n,) int64, ascending."""
        return torch.argsort(self.step)[-n:].sort().values

    def keep(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """The n neurons that go last: places within a's, b's and the merged ones, ascending."""
        d_ff, kept = len(self.weights[0].W_in), self.find_last(n)
        return tuple(kept[kept // d_ff == part] - part * d_ff for part in range(3))


def pool_pairs(
    model: nn.Module,
    permutations: Pairs,
    batches: Iterable[Batch],
    tokens: int | None = None,
    ridge: float = RIDGE,
) -> dict[str, list[Pool]]:
    """Order the neurons of every two neighbours, merged ones among them, by Optimal Brain Surgeon.

    One least-squares objective for a pair: the squared error of both outputs from all 3 d_ff
    neurons, centred in each sublayer; a merged neuron has one column of W_out for both.

    Args:
        model: the base; left as it is.
        permutations: of neighbours 0 and 1, 2 and 3, …
        batches: calibration data.
        tokens: how many to see; `find_tokens` if left out.
        ridge: λ, as a share of the mean diagonal.

    Returns:
        pools[stack]: one for each pair; a last layer without a partner is in none.
    """
    first, batches = peek(batches)
    stacks, activation = find_stacks(model), learn_activation(model, first)
    merged: dict[Key, Weights] = {}
    for name, stack in stacks.items():
        for a in range(0, len(stack) - 1, 2):
            p = select_permutations(permutations, {name: (Group((a, a + 1), a),)})[name][a + 1]
            first, second = (stack.sublayers[i].read() for i in (a, a + 1))
            merged[name, a] = merged[name, a + 1] = average([first, permute(second, p)])
    own = {(name, i): stacks[name].sublayers[i].read() for name, i in merged}

    def see(key: Key, x: Tensor) -> tuple[Tensor]:
        """Hidden activations of the layer's own FF beside the merged ones: (n, 2 d_ff)."""
        return (torch.cat([compute_hidden(w[key], x, activation) for w in (own, merged)], 1),)

    seen = gather_moments(model, batches, tokens, find_inputs, merged, see)
    pools: dict[str, list[Pool]] = {name: [] for name in stacks}
    for name, a in tqdm([key for key in merged if key[1] % 2 == 0], "pool", unit="pair"):
        weights = own[name, a], own[name, a + 1], merged[name, a]
        moments = seen[name, a], seen[name, a + 1]
        G, B = join_pair(weights, moments)
        pools[name].append(Pool((a, a + 1), weights, moments, find_order(G, B, ridge)[0]))
    return pools


def fit_pools(
    model: nn.Module, even: Plan, pools: Mapping[str, list[Pool]], ridge: float = RIDGE
) -> Patch:
    """Keep what the pools choose, and fit W_out to what all neurons gave.

    Args:
        model: the base; left as it is.
        even: the plan of an even pruning (`ffmerge.pruning`): each pair may store as much.
        pools: what `pool_pairs` returned.
        ridge: λ, as a share of the mean diagonal.

    Returns:
        The patch, with the plan that the pools make of the even one. A merged neuron is written
        into both sublayers, so that what is stored grows by what sharing it would have saved.
    """
    stacks, tensors, neurons = check_plan(model, even), {}, {}
    for name, widths in even.neurons.items():
        widths = list(widths)
        for pool in pools[name]:
            fitted = fit_pair(pool, 2 * widths[pool.pair[0]], ridge)
            for i, small in zip(pool.pair, fitted, strict=True):
                if len(small.W_in) == 0:  # its partner got all: a neuron that says nothing is left
                    left = select(stacks[name].sublayers[i].read(), torch.tensor([0]))
                    silent = torch.zeros_like(left.W_out)
                    small = replace(left, W_out=silent, b_out=small.b_out)
                tensors |= stacks[name].arrange(i, small)
                widths[i] = len(small.W_in)
        neurons[name] = tuple(widths)
    return Patch(Plan(neurons=neurons), tensors)


def fit_pair(pool: Pool, n: int, ridge: float = RIDGE) -> tuple[Weights, Weights]:
    """The weights of both sublayers of a pair that stores n neurons.

    Args:
        pool: of the pair.
        n: neurons stored; a merged one counts once.
        ridge: λ, as a share of the mean diagonal.
    """
    d, kept, places = len(pool.weights[0].W_in), pool.keep(n), pool.find_last(n)
    G, B = join_pair(pool.weights, pool.moments)
    W = solve_ridge(G[places][:, places], B[places], ridge)  # (n, d_model)
    columns = dict(zip(range(3), W.split([len(part) for part in kept]), strict=True))
    fitted = []
    for part, m in enumerate(pool.moments):
        own, merged = pool.weights[part], pool.weights[2]
        rows = [(select(own, kept[part]), columns[part]), (select(merged, kept[2]), columns[2])]
        joined = _concatenate(*(replace(w, W_out=c.T.to(w.W_out)) for w, c in rows))
        if own.b_out is not None:
            mean = torch.cat([m.mean[:d][kept[part]], m.mean[d:][kept[2]]])
            whole = own.W_out.cpu().double() @ m.mean[:d] + own.b_out.cpu().double()
            bias = whole - joined.W_out.cpu().double() @ mean
            joined = replace(joined, b_out=bias.to(own.b_out))
        fitted.append(joined)
    return tuple(fitted)


def _concatenate(a: Weights, b: Weights) -> Weights:
    """One sublayer with the neurons of both; b_out is a's."""
    joined = {}
    for f in fields(Weights):
        x, y = getattr(a, f.name), getattr(b, f.name)
        joined[f.name] = None if x is None else torch.cat([x, y], int(f.name == "W_out"))
    return Weights(**(joined | {"b_out": a.b_out}))


def join_pair(
    weights: tuple[Weights, Weights, Weights], moments: tuple[Moments, Moments]
) -> tuple[Tensor, Tensor]:
    """The normal equations of one pair: G (3 d_ff, 3 d_ff) and B (3 d_ff, d_model)."""
    d = len(weights[0].W_in)
    G = torch.zeros(3 * d, 3 * d, dtype=torch.float64)
    B = torch.zeros(3 * d, len(weights[0].W_out), dtype=torch.float64)
    for part, m in enumerate(moments):
        second = second_moments(weights[part], m)
        places = torch.cat([torch.arange(part * d, part * d + d), torch.arange(2 * d, 3 * d)])
        G[places[:, None], places] += second
        B[places] += second[:, :d] @ weights[part].W_out.cpu().double().T
    return G, B
