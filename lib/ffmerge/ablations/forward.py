"""Choose from a pool the other way round: take what helps most, then let go what is missed least.

Starting from all neurons, Optimal Brain Surgeon lets every merged one go first: beside all private
ones, which give the outputs exactly, it adds nothing. A choice that starts from none compares.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ffmerge.importance import find_order
from ffmerge.leastsquares import RIDGE, solve_ridge
from ffmerge.pooling import Pool, join_pair


def take_greedily(G: Tensor, B: Tensor, n: int, ridge: float = RIDGE) -> Tensor:
    """The rows of the least squares G W = B that help most, one after the other.

    Row j lowers the squared error by ‖b_j‖² / g_jj, both of what the rows taken before it leave
    over: `ffmerge.importance.find_order` the other way round.

    Args:
        G: (m, m) second moments.
        B: (m, d_model), with what is to be met.
        n: how many to take, at most m.
        ridge: λ, as a share of the mean diagonal.

    Returns:
        (n,) int64, the first the most helpful.

    Invariant: of uncorrelated rows the order is that of ‖b_j‖² / g_jj.
    """
    left = G + ridge * G.diagonal().mean() * torch.eye(len(G), dtype=G.dtype)
    met, order = B.clone(), torch.zeros(n, dtype=torch.int64)
    taken = torch.zeros(len(G), dtype=torch.bool)
    for k in range(n):
        gain = met.square().sum(1) / left.diagonal()
        j = int(gain.masked_fill(taken, -1).argmax())
        order[k], taken[j] = j, True
        row = left[j] / left[j, j]
        met -= torch.outer(row, met[j].clone())
        left.addr_(left[j].clone(), row, alpha=-1)
        left[j] = left[:, j] = 0
        left[j, j] = 1  # nothing is divided by 0
    return order


def reselect(pool: Pool, n: int, sharing: bool = True, ridge: float = RIDGE) -> Pool:
    """A pool with another choice of n neurons: take 2 n greedily, then let n go by the surgeon.

    Args:
        pool: of a pair.
        n: neurons to be stored; of more than d_ff less than 2 n are taken, 2 d_ff.
        sharing: whether merged neurons may be taken.
        ridge: λ, as a share of the mean diagonal.

    Returns:
        The pool, whose `keep` holds for n neurons and fewer.
    """
    G, B = join_pair(pool.weights, pool.moments)
    whole = 2 * len(pool.weights[0].W_in)
    most = len(G) if sharing else whole
    taken = take_greedily(G[:most, :most], B[:most], min(2 * n, whole), ridge)
    step = torch.zeros_like(pool.step)
    step[taken] = 1 + find_order(G[taken][:, taken], B[taken], ridge)[0]
    return replace(pool, step=step)


def measure_pool(pool: Pool, n: int, ridge: float = RIDGE) -> float:
    """The squared error of both outputs of a pair that stores n neurons, over their variance.

    Without b_out, over their mean squares.

    Args:
        pool: of the pair.
        n: neurons stored; a merged one counts once.
        ridge: λ, as a share of the mean diagonal.
    """
    G, B = join_pair(pool.weights, pool.moments)
    d, places = len(pool.weights[0].W_in), pool.find_last(n)
    W = solve_ridge(G[places][:, places], B[places], ridge)
    W_out = torch.cat([w.W_out.cpu().double().T for w in pool.weights[:2]])  # (2 d_ff, d_model)
    whole = (W_out * B[: 2 * d]).sum()
    error = whole - 2 * (W * B[places]).sum() + ((G[places][:, places] @ W) * W).sum()
    return float(error / whole)
