"""Singular values in extended precision where Jacobi is too slow: Householder, then bisection.

A is brought to a bidiagonal B by reflections in numpy's long double (Golub and Kahan 1965); the values of B
are bisected by Sturm counts of the Golub-Kahan tridiagonal matrix (Demmel and Kahan 1990). Both are backward
stable: the error is some n long-double eps sigma_1 at worst, 0.5 float64 eps for n = 1024 (64-bit mantissa).
500 x 500 take some two seconds.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

Array = np.ndarray
# Halvings of [0, norm]: to one eps of it in long double.
_HALVINGS = 66


def singular_values_by_bisection(matrix: Tensor) -> Array:
    """Singular values of one real (m, n) matrix, descending, as long double."""
    work = np.asarray(matrix.double().numpy(), dtype=np.longdouble)
    work = work.T.copy() if work.shape[0] < work.shape[1] else work.copy()
    largest = np.abs(work).max()
    if largest == 0:
        return np.zeros(work.shape[1], dtype=np.longdouble)
    return _bisect(*_bidiagonal(work / largest)) * largest


def _reflector(x: Array) -> tuple[Array, np.longdouble, np.longdouble]:
    """v, tau and alpha with (1 - tau v v^T) x = alpha e_1."""
    norm = np.sqrt((x * x).sum())
    if norm < np.finfo(x.dtype).eps ** 2:  # zero for every purpose, and its square may underflow
        return x, 0 * norm, 0 * norm
    v = x.copy()
    alpha = -norm if x[0] >= 0 else norm
    v[0] -= alpha
    return v, 2 / (v * v).sum(), alpha


def _bidiagonal(a: Array) -> tuple[Array, Array]:
    """Diagonal and superdiagonal of the bidiagonal form of a tall matrix, which is overwritten."""
    n = a.shape[1]
    d, e = np.zeros(n, a.dtype), np.zeros(max(n - 1, 0), a.dtype)
    for k in range(n):
        v, tau, d[k] = _reflector(a[k:, k])
        rest = a[k:, k + 1 :]
        rest -= np.outer(tau * v, v @ rest)
        if k + 1 < n:
            v, tau, e[k] = _reflector(a[k, k + 1 :])
            below = a[k + 1 :, k + 1 :]
            below -= np.outer(below @ v, tau * v)
    return d, e


def _bisect(d: Array, e: Array) -> Array:
    n = len(d)
    squares = np.zeros(2 * n - 1, d.dtype)  # of the off-diagonal of the tridiagonal matrix
    squares[::2], squares[1::2] = d * d, e * e
    tiny = np.finfo(d.dtype).eps ** 2 * squares.max()
    low = np.zeros(n, d.dtype)
    high = np.full(n, 2 * np.sqrt(squares.max()), d.dtype)  # Gershgorin
    index = np.arange(n)  # ascending
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        pivot = -np.maximum(middle, tiny)
        below = (pivot < 0).astype(np.int64)
        for square in squares:
            pivot = -middle - square / pivot
            pivot = np.where(np.abs(pivot) < tiny, -tiny, pivot)
            below += pivot < 0
        # n of the 2n eigenvalues +-sigma are negative.
        above = below - n > index
        high, low = np.where(above, middle, high), np.where(above, low, middle)
    return ((low + high) / 2)[::-1]
