"""CUDA stage `values`, run on the CPU: certified by Sturm counts with 400 digits, value by value."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_fast.cuda.sources import Types
from tests.cuda_emulator import Emulator
from tests.cuda_stages.values import TYPES, WARP, values
from tests.test_values import MAKERS, SIZES, Counter, assemble, certify, gaussian, glued, graded, nearly_equal

EMULATE = Emulator()
IN_DOUBLE, DOUBLE, SINGLE = TYPES
EPS = torch.finfo(torch.float32).eps


def bidiagonal(make: object, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Its two diagonals, one matrix each: (1, n)."""
    A = assemble(make, n, dtype)
    return A.diagonal()[None].contiguous(), torch.cat([A.diagonal(1), A.new_zeros(1)])[None]


def call(types: Types, d: Tensor, e: Tensor, emulate: Emulator = EMULATE, **given: list[int]) -> Tensor:
    """The values of every matrix of d, e."""
    zeros = [0] * len(d)
    exponent, info = (
        torch.tensor(given.get(name, zeros), dtype=torch.int32) for name in ("exponent", "info")
    )
    return values(emulate, types, d.to(types.wide), e.to(types.wide), exponent, info)["out"]


def lapack(d: Tensor, e: Tensor) -> Tensor:
    """The values of one bidiagonal matrix, to a few eps of the largest."""
    return torch.linalg.svdvals(torch.diag(d.double()) + torch.diag(e.double()[:-1], 1))


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_float64_values_are_within_a_few_units(make: object) -> None:
    """A count is exact for entries that differ from B's by a few units in the last place."""
    for n in SIZES:
        certify(
            assemble(make, n, torch.float64),
            call(DOUBLE, *bidiagonal(make, n, torch.float64))[0],
            4 * 2.0**-52,
        )


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_float32_values_are_correctly_rounded_but_for_an_eighth(make: object) -> None:
    for n in SIZES:
        A = assemble(make, n, torch.float32)
        certify(A, call(IN_DOUBLE, *bidiagonal(make, n, torch.float32))[0], (0.5 + 0.125) * 2.0**-23)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_float32_throughout_stays_within_the_contract(make: object) -> None:
    """2 eps sigma_1.

    A count is exact for entries within a few rounding errors of B's, say eta = 2 * 2^-24 of each: a change
    whose norm is at most eta | |B| |_2 <= 2 eta sigma_1 = 2 eps sigma_1, reached by no value here. Values
    below 2^-30 of the bound are zero.
    """
    for n in SIZES:
        d, e = bidiagonal(make, n, torch.float32)
        ours, exact = call(SINGLE, d, e)[0], lapack(d[0], e[0])
        assert (ours.double() - exact).abs().max() <= 2 * EPS * exact[0]


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_small_values_of_a_gaussian_bidiagonal_are_relatively_accurate(types: Types) -> None:
    """The last of a lower triangle of ones' inverse: here the smallest value is 2^-20 of the largest."""
    n = 21
    d, e = torch.ones(1, n), torch.full((1, n), 2.0)
    e[0, -1] = 0
    exact = call(DOUBLE, d, e)[0]
    assert exact[-1] < 1e-6 * exact[0]
    # n entries are perturbed by a few units each, and their relative errors add up in the smallest value.
    assert ((call(types, d, e)[0].double() - exact).abs() <= n * torch.finfo(types.scalar).eps * exact).all()


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_tiny_matrices(types: Types) -> None:
    assert call(types, torch.tensor([[-0.3]]), torch.zeros(1, 1)).tolist() == [[torch.tensor(0.3).item()]]
    for d, e in (([3.0, -1.0], [2.0, 0.0]), ([1.0, 0.0, 2.0], [0.5, 1.0, 0.0])):
        exact = lapack(torch.tensor(d), torch.tensor(e))
        ours = call(types, torch.tensor([d]), torch.tensor([e]))[0]
        assert (ours.double() - exact).abs().max() <= torch.finfo(types.scalar).eps * exact[0]


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 40])
def test_zero_matrices_and_one_value(types: Types, n: int) -> None:
    d = torch.zeros(2, n)
    d[1, n // 2] = -4
    out = call(types, d, torch.zeros(2, n))
    assert (out[0] == 0).all()
    assert (out[1, 1:] == 0).all()
    assert abs(out[1, 0] - 4) <= 4 * torch.finfo(types.scalar).eps


def test_values_of_a_diagonal_are_its_entries() -> None:
    d = torch.randn(1, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    exact = d[0].abs().sort(descending=True).values
    ours = call(DOUBLE, d, torch.zeros_like(d))[0]
    # The square and its root round, and the square is known to the next number.
    assert ((ours - exact).abs() <= 2 * 2.0**-52 * exact).all()


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_norms_of_any_size(types: Types) -> None:
    """d and e are scaled by a power of two, so their size changes no bit."""
    d, e = bidiagonal(gaussian, 33, types.wide)
    expected = call(types, d, e)
    limit = 60 if types.wide == torch.float32 else 120
    for shift in (-limit, -7, limit):
        assert torch.equal(
            call(
                types,
                torch.ldexp(d, torch.tensor(shift)),
                torch.ldexp(e, torch.tensor(shift)),
                exponent=[-shift],
            ),
            expected,
        )


def test_subnormal_values_are_rounded_once() -> None:
    d, e = bidiagonal(graded, 33, torch.float64)
    ours = call(DOUBLE, d, e, exponent=[-1050])[0]
    assert 0 < ours[0] < 2.0**-1022
    assert np.array_equal(ours.numpy(), np.ldexp(call(DOUBLE, d, e)[0].numpy(), -1050))


@pytest.mark.parametrize("types", [IN_DOUBLE, SINGLE], ids=str)
def test_subnormal_float32_values_survive_flushing(types: Types) -> None:
    """Arithmetic makes zeros of them there. Rounded once more where they are float already."""
    d, e = bidiagonal(graded, 33, torch.float32)
    exact = np.ldexp(lapack(d[0], e[0]).numpy(), -140)
    ours = call(types, d, e, exponent=[-140])[0].double().numpy()
    assert 0 < ours[0] < 2.0**-126
    assert (ours > 0).sum() > 1
    assert np.abs(ours - exact).max() <= 0.5 * 2.0**-149 + 2 * EPS * exact[0]


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_neighbours_change_no_bit(types: Types) -> None:
    """Not even one of NaN: it spoils itself alone."""
    matrices = [bidiagonal(make, 70, types.wide) for make in (gaussian, glued, graded, nearly_equal)]
    d, e = (torch.cat(diagonals) for diagonals in zip(*matrices, strict=True))
    d[1], e[2, :-1] = torch.nan, torch.inf
    out = call(types, d, e, info=[0, 1, 1, 0], exponent=[2, 0, 0, -3])
    assert out[1:3].isnan().all()
    for i, exponent in ((0, 2), (3, -3)):
        assert torch.equal(out[i], call(types, d[i, None], e[i, None], exponent=[exponent])[0])


@pytest.mark.parametrize("types", [IN_DOUBLE, SINGLE], ids=str)
@pytest.mark.parametrize("make", [gaussian, graded], ids=lambda make: make.__name__)
def test_a_thousand_float32_values(types: Types, make: object) -> None:
    d, e = bidiagonal(make, 1000, torch.float32)
    out, exact = call(types, d, e)[0].double(), lapack(d[0], e[0])
    assert (out - exact).abs().max() <= 4 * EPS * exact[0]  # the contract's, for n <= 1024


def test_a_thousand_float64_values() -> None:
    """LAPACK errs by more: every fiftieth is certified."""
    A = assemble(gaussian, 1000, torch.float64)
    out = call(DOUBLE, *bidiagonal(gaussian, 1000, torch.float64))[0]
    counter = Counter(A)
    with mpmath.workdps(400):
        for k in range(0, 1000, 50):
            x, error = mpmath.mpf(out[k].item()), mpmath.mpf(4 * 2.0**-52)
            assert counter.below(x * (1 - error)) <= 999 - k < counter.below(x * (1 + error))


def replaced(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert text.count(old) == 1
        return text.replace(old, new)

    return edit


@pytest.mark.parametrize("make", [gaussian, graded, glued], ids=lambda make: make.__name__)
def test_dividing_evenly_alone_ends_and_is_right(make: object) -> None:
    """What is left when no step helps: a round at least halves the numbers in a bracket, 2^61 of them."""
    emulate = Emulator(edit=replaced("max_steps = 32", "max_steps = 0"))
    A = assemble(make, 33, torch.float64)
    certify(A, call(DOUBLE, *bidiagonal(make, 33, torch.float64), emulate)[0], 4 * 2.0**-52)


def rounds(types: Types, d: Tensor, e: Tensor) -> Tensor:
    """Of every warp: the points its busiest lane has counted at beside the grid's."""
    n = d.shape[1]

    def edit(text: str) -> str:
        for old, new in (
            ("for (int round = 0;", "int round = 0;\n  for (;"),
            ("roots[k] = sqrt(square) * unit", "roots[k] = round"),
        ):
            text = replaced(old, new)(text)
        return text

    zeros = torch.zeros(1, dtype=torch.int32)
    counted = values(Emulator(edit=edit), types, d.to(types.wide), e.to(types.wide), zeros, zeros)["roots"][0]
    return counted[torch.arange(0, n, WARP)].double()


def power_law(n: int) -> tuple[Tensor, Tensor]:
    """What is left of k^-0.6 by Golub and Kahan's recurrence with a random start."""
    sigma = torch.arange(1, n + 1, dtype=torch.float64) ** -0.6
    g = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=g)).Q
    return golub_kahan(torch.diag(sigma) @ Q)


def golub_kahan(A: Tensor) -> tuple[Tensor, Tensor]:
    """Bidiagonalization by Householder reflections, of a square matrix."""
    A, n = A.clone(), len(A)
    for k in range(n):
        for x, part in ((A[k:, k], A[k:, k:]), (A[k, k + 1 :], A[k:, k + 1 :].T)):
            if len(x) < 2:
                continue
            u = x.clone()
            u[0] += torch.copysign(u.norm(), u[0])
            part -= torch.outer(u, (u @ part) * 2 / (u @ u))
    return A.diagonal()[None].contiguous(), torch.cat([A.diagonal(1), A.new_zeros(1)])[None]


CASES = SimpleNamespace(
    gaussian=lambda n: bidiagonal(gaussian, n, torch.float64),
    power_law=power_law,
    graded=lambda n: bidiagonal(graded, n, torch.float64),
    clusters=lambda n: bidiagonal(glued, n, torch.float64),
)


@pytest.mark.parametrize(
    ("case", "at_most"),
    [
        # Measured: 4.8, 5.4, 6.4; 7, 8, 8; 14, 15, 6; 5, 11, 5. Half again is allowed: lanes that bisected
        # alone would need 16, 42 and 20, and more for all but the first.
        ("gaussian", (7, 8, 10)),
        ("power_law", (11, 12, 12)),
        ("graded", (21, 22, 10)),
        ("clusters", (8, 17, 8)),
    ],
)
def test_few_points_are_counted(case: str, at_most: tuple[int, ...]) -> None:
    d, e = getattr(CASES, case)(256)
    for types, most in zip(TYPES, at_most, strict=True):
        assert 0 < rounds(types, d, e).mean() <= most
