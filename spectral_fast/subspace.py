"""The leading singular values of a matrix that has moved a little, from one product with A^T A.

V (n x s, orthonormal) spans nearly the leading right singular vectors of an earlier A, Z = A^T A V. Two sets
of Ritz values come from the same product, both below the squares they approximate (Courant-Fischer):

    theta   eigenvalues of T = V^T Z                  the span of V
    mu      eigenvalues of T^{-1/2} Z^T Z T^{-1/2}    half an iteration later: the span of A V, from the left

The squared sine of the angle to the i-th singular vector shrinks by c_i = lambda_{s+1} / lambda_i in half an
iteration (Rutishauser 1969), and so does the error of the value: lambda_i - mu_i is about
(mu_i - theta_i) c_i / (1 - c_i), with mu_s in the place of lambda_{s+1}. The next V are the right singular
vectors of the projected matrix, the columns of Z T^{-1/2} W mu^{-1/2} with W the eigenvectors.

A product costs 4 m n s flops and one read of A; the rest is O(n s^2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Where a spectrum has no gap at all, the estimate of the remaining error must not divide by zero.
_SMALLEST_GAP = 0.01


class Ritz(NamedTuple):
    """What one product tells of the leading values; B matrices, s vectors.

    Attributes:
        squares: (B, s) float64, descending, lower bounds of the squared singular values.
        pending: (B, s) float64, about what is missing from each value sigma_i, relative to it.
        vectors: (B, n, s), for the next product; as handed in where the matrix is not finite.
        traces: (B, 2) float64, of V^T Z and Z^T Z.
    """

    squares: Tensor
    pending: Tensor
    vectors: Tensor
    traces: Tensor


def ritz(V: Tensor, Z: Tensor) -> Ritz:
    """Ritz values and the next vectors from V (B, n, s) and Z = A^T A V; NaN values where Z is not finite."""
    finite = Z.isfinite().all(-1).all(-1)[:, None, None]
    known = torch.where(finite, Z, 0)
    T = _symmetric((V.mT @ known).to(torch.float64))
    theta, Q = torch.linalg.eigh(T)
    # What rounding has left of a zero must not be divided by.
    least = theta[:, -1:].clamp_min(0) * (T.shape[-1] * torch.finfo(Z.dtype).eps)
    root = torch.where(theta > least, theta.clamp_min(torch.finfo(theta.dtype).tiny).rsqrt(), 0)
    whiten = Q * root[:, None, :]
    G = (known.mT @ known).to(torch.float64)
    mu, W = torch.linalg.eigh(_symmetric(whiten.mT @ G @ whiten))
    theta, mu, W = theta.flip(-1).clamp_min(0), mu.flip(-1).clamp_min(0), W.flip(-1)
    kept = mu > least
    turn = (whiten @ W) * torch.where(kept, mu.clamp_min(torch.finfo(mu.dtype).tiny).rsqrt(), 0)[:, None, :]
    vectors = torch.where(finite, known @ turn.to(Z.dtype), V)

    # Where the matrix has no s directions (a zero before the first step, say), the others stay to be found.
    kept = kept | ~finite[:, :, 0]
    if not bool(kept.all()):
        vectors = torch.linalg.qr(torch.where(kept[:, None, :], vectors, V)).Q
    tiny = torch.finfo(mu.dtype).tiny
    contraction = (mu[:, -1:] / mu.clamp_min(tiny)).clamp_max(1 - _SMALLEST_GAP)
    pending = (mu - theta).clamp_min(0) / mu.clamp_min(tiny) / 2 * contraction / (1 - contraction)
    unknown = torch.where(finite[:, :, 0], 0.0, torch.nan)
    traces = torch.stack([_trace(T), _trace(G)], -1)
    return Ritz(mu + unknown, pending + unknown, vectors, traces + unknown)


def _trace(X: Tensor) -> Tensor:
    return X.diagonal(dim1=-2, dim2=-1).sum(-1)


def _symmetric(X: Tensor) -> Tensor:
    return (X + X.mT) / 2
