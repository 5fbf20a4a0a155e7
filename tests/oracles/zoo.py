"""Matrices with spectra that are hard for an SVD, by name. Each function returns (m, n) in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Maker = Callable[[int, int, torch.Generator], Tensor]


def orthonormal(rows: int, cols: int, g: torch.Generator) -> Tensor:
    """Random with orthonormal columns, rows >= cols."""
    return torch.linalg.qr(torch.randn(rows, cols, dtype=torch.float64, generator=g))[0]


def with_values(values: Callable[[Tensor], Tensor]) -> Maker:
    """U diag(values) V^T; `values` gets positions 0 .. 1 along the spectrum."""

    def make(m: int, n: int, g: torch.Generator) -> Tensor:
        k = min(m, n)
        s = values(torch.linspace(0, 1, k, dtype=torch.float64))
        return orthonormal(m, k, g) * s @ orthonormal(n, k, g).T

    return make


def gaussian(m: int, n: int, g: torch.Generator) -> Tensor:
    return torch.randn(m, n, dtype=torch.float64, generator=g)


def graded(m: int, n: int, g: torch.Generator) -> Tensor:
    """Rows and columns that fall by ten orders of magnitude."""
    rows, cols = torch.logspace(0, -10, m), torch.logspace(0, -10, n)
    return rows.double()[:, None] * gaussian(m, n, g) * cols.double()


def graded_upward(m: int, n: int, g: torch.Generator) -> Tensor:
    return graded(m, n, g).flip(0, 1)


def lauchli(m: int, n: int, g: torch.Generator) -> Tensor:
    """A row of ones over mu I: loses its small values in a Gram matrix."""
    a = torch.zeros(m, n, dtype=torch.float64)
    a[0] = 1
    a.diagonal(-1).fill_(1e-6)
    return a


def hilbert(m: int, n: int, g: torch.Generator) -> Tensor:
    i, j = torch.arange(m, dtype=torch.float64), torch.arange(n, dtype=torch.float64)
    return 1 / (i[:, None] + j + 1)


def heavy_tailed_entries(m: int, n: int, g: torch.Generator) -> Tensor:
    """Student t with one and a half degrees of freedom, about."""
    u = torch.rand(m, n, dtype=torch.float64, generator=g).clamp(min=1e-12)
    return gaussian(m, n, g) * u ** (-1 / 1.5)


def one_huge_entry(m: int, n: int, g: torch.Generator) -> Tensor:
    a = gaussian(m, n, g)
    a[m // 2, n // 2] = 1e10
    return a


def rank_deficient(m: int, n: int, g: torch.Generator) -> Tensor:
    rank = max(1, min(m, n) // 3)
    return gaussian(m, rank, g) @ gaussian(rank, n, g)


def zero_rows_and_columns(m: int, n: int, g: torch.Generator) -> Tensor:
    a = gaussian(m, n, g)
    a[: m // 2] = 0
    a[:, n // 2 :] = 0
    return a


def identity(m: int, n: int, g: torch.Generator) -> Tensor:
    return torch.eye(m, n, dtype=torch.float64)


def ones(m: int, n: int, g: torch.Generator) -> Tensor:
    return torch.ones(m, n, dtype=torch.float64)


def zeros(m: int, n: int, g: torch.Generator) -> Tensor:
    return torch.zeros(m, n, dtype=torch.float64)


def diagonal_over_decades(m: int, n: int, g: torch.Generator) -> Tensor:
    a = torch.zeros(m, n, dtype=torch.float64)
    k = min(m, n)
    a.diagonal().copy_(torch.logspace(3, -25, k, dtype=torch.float64)[torch.randperm(k, generator=g)])
    return a


def bidiagonal(m: int, n: int, g: torch.Generator) -> Tensor:
    """Diagonal ones, superdiagonal twos: smallest value about 2^-n."""
    a = torch.eye(m, n, dtype=torch.float64)
    a.diagonal(1).fill_(2)
    return a


def small_integers(m: int, n: int, g: torch.Generator) -> Tensor:
    return torch.randint(-3, 4, (m, n), generator=g).double()


def scaled(factor: float) -> Maker:
    def make(m: int, n: int, g: torch.Generator) -> Tensor:
        return gaussian(m, n, g) * factor

    return make


def tiny_column(factor: float) -> Maker:
    def make(m: int, n: int, g: torch.Generator) -> Tensor:
        a = gaussian(m, n, g)
        a[:, 0] *= factor
        return a

    return make


ZOO: dict[str, Maker] = {
    "gaussian": gaussian,
    "log_spaced": with_values(lambda t: 10 ** (-7 * t)),
    "log_spaced_wide": with_values(lambda t: 10 ** (-16 * t)),
    "clustered": with_values(lambda t: 1 + 1e-6 * t),
    "two_clusters": with_values(lambda t: torch.where(t < 0.5, 1 + 1e-7 * t, 1e-3 + 1e-9 * t)),
    "repeated": with_values(lambda t: 2.0 ** -(t * 3).round()),
    "all_equal": with_values(torch.ones_like),
    "one_large": with_values(lambda t: torch.where(t == 0, 1e4, 1e-2 + t)),
    "power_law": with_values(lambda t: (1 + 500 * t) ** -0.6),
    "rank_deficient": rank_deficient,
    "zero_rows_and_columns": zero_rows_and_columns,
    "graded": graded,
    "graded_upward": graded_upward,
    "lauchli": lauchli,
    "hilbert": hilbert,
    "heavy_tailed_entries": heavy_tailed_entries,
    "one_huge_entry": one_huge_entry,
    "identity": identity,
    "ones": ones,
    "zeros": zeros,
    "diagonal_over_decades": diagonal_over_decades,
    "bidiagonal": bidiagonal,
    "small_integers": small_integers,
    "scale_1e30": scaled(1e30),
    "scale_1e-30": scaled(1e-30),
    "float32_subnormal": scaled(1e-41),
    "float32_near_overflow": scaled(1e37),
}
FLOAT64_ONLY: dict[str, Maker] = {
    "scale_1e150": scaled(1e150),
    "scale_1e-200": scaled(1e-200),
    "float64_subnormal": scaled(1e-316),
    "float64_near_overflow": scaled(1e305),
    "column_whose_squares_are_subnormal": tiny_column(1e-162),
    "column_whose_squares_nearly_are": tiny_column(1e-156),
}
