"""Least squares for W_out: what the neurons that are left can give back of the sublayer's output.

With H the hidden activations and C their covariance, W_out H is closest to the base's output in
the mean square, over calibration data, at a ridge regression that needs C alone (GRAIL, CORP).
"""

from dataclasses import replace

import torch
from torch import Tensor

from ffmerge.moments import Moments
from ffmerge.weights import Weights, select

RIDGE = 1e-4  # of the mean diagonal


def refit_output(weights: Weights, moments: Moments, kept: Tensor, ridge: float = RIDGE) -> Weights:
    """Keep some neurons of one FF sublayer, and fit W_out and b_out to what all of them gave.

    W_out' = W_out C[:, kept] (C[kept, kept] + λI)^-1, centred, so that b_out takes over the mean of
    what is gone; a model without biases takes second moments in the place of C.

    Args:
        weights: the base's.
        moments: of the hidden activations.
        kept: (n_kept,) int64, the neurons that stay.
        ridge: λ, as a share of the mean diagonal.

    Returns:
        Weights of n_kept neurons, in the dtype of the base.

    Invariant: keeping all neurons changes nothing up to the ridge; the error on the calibration
    data is never above that of keeping the neurons alone (at λ = 0).
    """
    second = second_moments(weights, moments)
    W = weights.W_out.cpu().double()
    W_new = solve_ridge(second[kept][:, kept], second[kept] @ W.T, ridge).T  # (d_model, n_kept)
    small = replace(select(weights, kept), W_out=W_new.to(weights.W_out))
    if weights.b_out is None:
        return small
    mean = weights.b_out.cpu().double() + W @ moments.mean - W_new @ moments.mean[kept]
    return replace(small, b_out=mean.to(weights.b_out))


def second_moments(weights: Weights, moments: Moments) -> Tensor:
    """What least squares weighs errors by: E[H H^T], or the covariance if a bias takes the mean."""
    return moments.second if weights.b_out is None else moments.covariance


def solve_ridge(G: Tensor, B: Tensor, ridge: float = RIDGE) -> Tensor:
    """(G + λI)^-1 B in float64 by Cholesky, λ a share of G's mean diagonal.

    Args:
        G: (n, n), symmetric and positive semi-definite.
        B: (n, m).
        ridge: the share.
    """
    return torch.cholesky_solve(B.double(), _factor(G, ridge))


def invert_ridge(G: Tensor, ridge: float = RIDGE) -> Tensor:
    """(G + λI)^-1, as in `solve_ridge`."""
    return torch.cholesky_inverse(_factor(G, ridge))


def _factor(G: Tensor, ridge: float) -> Tensor:
    G = G.double()
    level = G.diagonal().mean()
    level = level if level > 0 else torch.ones_like(level)  # nothing fires: any solution is one
    return torch.linalg.cholesky(G + ridge * level * torch.eye(len(G)).to(G))
