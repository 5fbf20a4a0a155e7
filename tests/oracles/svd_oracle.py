"""Singular values in extended precision: the oracle every kernel is compared with, value by value.

One-sided Jacobi (Demmel and Veselić 1992) in numpy's long double (64-bit mantissa on x86, 113-bit on
aarch64), all pairs of a round-robin round rotated together. It shares no code and no algorithm with
the package or with LAPACK's default driver.
"""

from __future__ import annotations

import numpy as np
import torch

Array = np.ndarray


def singular_values(matrix: torch.Tensor) -> Array:
    """Singular values of one (m, n) matrix, descending, as a long double array of length min(m, n).

    Error: a few hundred long-double eps relative to the largest value, checked against mpmath in
    test_oracles.py.
    """
    a = matrix.detach().cpu()
    # bfloat16 and float16 have no numpy twin of the same meaning; float64 holds them exactly.
    work = np.asarray(a.to(torch.float64).numpy(), dtype=np.longdouble)
    if work.shape[0] < work.shape[1]:
        work = work.T
    m, n = work.shape
    if n == 0:
        return np.zeros(0, dtype=np.longdouble)
    work = np.ascontiguousarray(work.T)  # rows are the columns to orthogonalise
    largest = np.abs(work).max()
    if largest == 0:
        return np.zeros(n, dtype=np.longdouble)
    work /= largest
    if m > 2 * n:
        # Gram-Schmidt-free shortcut is not accurate enough: Householder QR in the same precision.
        work = np.ascontiguousarray(_triangle(work.T.copy()))
    work = _jacobi(_nearly_orthogonal(work))
    values = np.sqrt((work * work).sum(axis=1)) * largest
    return np.sort(values)[::-1][:n]  # an odd n was padded with a zero row


def _triangle(a: Array) -> Array:
    """Householder QR of a tall matrix; the triangle only."""
    n = a.shape[1]
    for k in range(n):
        x = a[k:, k].copy()
        norm = np.sqrt((x * x).sum())
        if norm == 0:
            continue
        x[0] += norm if x[0] >= 0 else -norm
        scale = 2 / (x * x).sum()
        a[k:, k:] -= np.outer(scale * x, x @ a[k:, k:])
    return np.triu(a[:n])


def _nearly_orthogonal(rows: Array) -> Array:
    """The rows, rotated by LAPACK's left singular vectors in float64: Jacobi then needs few of its sweeps.

    Any orthonormal Q leaves the singular values as they are, so a bad one costs sweeps and nothing else. Q
    is made orthonormal to long double by Newton's iteration, which squares its distance from that.
    """
    q = np.linalg.svd(rows.astype(np.float64))[0].T.astype(np.longdouble)
    identity = np.eye(len(rows), dtype=np.longdouble)
    off = identity - q @ q.T
    if not np.abs(off).max() < 1e-8:
        raise ArithmeticError(f"LAPACK's vectors are off by {np.abs(off).max()}")
    q += off @ q / 2
    return q @ rows


def _jacobi(rows: Array, max_sweeps: int = 60) -> Array:
    n = rows.shape[0]
    if n == 1:
        return rows
    even = n + n % 2
    if even != n:
        rows = np.vstack([rows, np.zeros((1, rows.shape[1]), dtype=rows.dtype)])
    eps = np.finfo(rows.dtype).eps
    order = np.arange(even)
    for _ in range(max_sweeps):
        largest = np.longdouble(0)
        for _ in range(even - 1):
            p, q = order[: even // 2], order[even // 2 :][::-1]
            largest = max(largest, _rotate(rows, p, q, eps))
            order = np.concatenate([order[:1], order[-1:], order[1:-1]])
        if largest <= 4 * eps:
            return rows
    raise ArithmeticError(f"Jacobi did not converge in {max_sweeps} sweeps: {largest}")


def _rotate(rows: Array, p: Array, q: Array, eps: np.floating) -> np.longdouble:
    """Make rows p[i] and q[i] orthogonal for every i; returns the largest cosine found."""
    x, y = rows[p], rows[q]
    xx, yy, xy = (x * x).sum(axis=1), (y * y).sum(axis=1), (x * y).sum(axis=1)
    scale = np.sqrt(xx) * np.sqrt(yy)
    # Rows at rounding level of the matrix are zero for every purpose of an absolute error bound.
    negligible = np.minimum(xx, yy) <= (eps * eps) * (xx.max() + yy.max()) * eps
    cosine = np.where(negligible | (scale == 0), 0, np.abs(xy) / np.where(scale == 0, 1, scale))
    turn = cosine > eps
    zeta = (yy - xx) / np.where(turn, 2 * xy, 1)
    t = np.where(zeta >= 0, 1, -1) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta))
    c = 1 / np.sqrt(1 + t * t)
    s = c * t
    c, s = np.where(turn, c, 1)[:, None], np.where(turn, s, 0)[:, None]
    rows[p], rows[q] = c * x - s * y, s * x + c * y
    return cosine.max()
