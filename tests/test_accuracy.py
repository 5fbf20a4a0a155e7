"""svdvals against exact values, value by value, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import spectral_fast as sf
from tests.oracles.accuracy import constant, exact_values, judge
from tests.oracles.zoo import FLOAT64_ONLY, ZOO

CASES = [(torch.float32, name) for name in ZOO] + [(torch.float64, name) for name in (*ZOO, *FLOAT64_ONLY)]
SHAPES = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (17, 17), (40, 33), (90, 31), (31, 90), (400, 5)]
_exact: dict[tuple[str, torch.dtype, tuple[int, int]], tuple[Tensor, np.ndarray]] = {}


def matrix(name: str, dtype: torch.dtype, shape: tuple[int, int]) -> tuple[Tensor, np.ndarray]:
    """A member of the zoo in this dtype, and its exact values (computed once for all instruction sets)."""
    key = (name, dtype, shape)
    if key not in _exact:
        make = {**ZOO, **FLOAT64_ONLY}[name]
        a = make(*shape, torch.Generator().manual_seed(sum(shape))).to(dtype)
        _exact[key] = a, exact_values(a)
    return _exact[key]


@pytest.mark.parametrize(("dtype", "name"), CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_zoo(isa: str, dtype: torch.dtype, name: str) -> None:
    for shape in SHAPES:
        a, exact = matrix(name, dtype, shape)
        values = sf.svdvals(a)
        assert (values >= 0).all()
        assert (values[:-1] >= values[1:]).all()
        accuracy = judge(a, values, exact)
        assert accuracy.holds, (shape, accuracy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["gaussian", "power_law", "log_spaced", "rank_deficient", "graded"])
@pytest.mark.parametrize("shape", [(128, 128), (129, 129), (300, 128)], ids=str)
def test_where_the_constant_is_smallest(
    isa: str, name: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """n <= 128 allows 2 eps only; n = 129 has a remainder in every vector width."""
    a, exact = matrix(name, dtype, shape)
    accuracy = judge(a, sf.svdvals(a), exact)
    assert accuracy.holds, accuracy


@pytest.mark.parametrize("shape", [(384, 384), (1536, 384), (768, 768), (1100, 1100)], ids=str)
def test_layer_sizes(isa: str, shape: tuple[int, int]) -> None:
    a, exact = matrix("power_law", torch.float32, shape)
    accuracy = judge(a, sf.svdvals(a), exact)
    assert accuracy.holds, accuracy


@pytest.mark.parametrize("shape", [(192, 143), (215, 179)], ids=str)
def test_equal_values_in_two_stages(isa: str, shape: tuple[int, int]) -> None:
    """No reflector of `bidiagonal` may stretch, and no update of `band` round once a column."""
    a, exact = matrix("all_equal", torch.float32, shape)
    accuracy = judge(a, sf.svdvals(a), exact)
    assert accuracy.holds, accuracy


def test_very_tall(isa: str) -> None:
    """Hundreds of chunks pass through `reduce`; their roundings must not add up."""
    for dtype, shape in ((torch.float32, (60000, 16)), (torch.float64, (100000, 4))):
        a, exact = matrix("gaussian", dtype, shape)
        accuracy = judge(a, sf.svdvals(a), exact)
        assert accuracy.holds, (shape, accuracy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precisions_are_exact_conversions(isa: str, dtype: torch.dtype) -> None:
    """The values are those of the same numbers in float32, bit for bit, subnormal halves included."""
    a = torch.randn(3, 40, 25) * torch.logspace(-9, 1, 25)
    half = a.to(dtype)
    assert (half.float().abs() < torch.finfo(dtype).smallest_normal).any() or dtype == torch.bfloat16
    values = sf.svdvals(half)
    assert values.dtype == torch.float32
    assert torch.equal(values, sf.svdvals(half.float()))


@pytest.mark.parametrize("shape", [(13, 63), (75, 12), (59, 10), (40, 64)], ids=str)
def test_reflectors_have_no_common_error(isa: str, shape: tuple[int, int]) -> None:
    """Signs of a Hadamard matrix: every entry is hit by the same rounding, so errors of reflectors add up."""
    i, j = torch.arange(shape[0])[:, None], torch.arange(shape[1])
    ones = sum(((i & j) >> bit) & 1 for bit in range(7))
    a = (1 - 2 * (torch.as_tensor(ones) % 2)).double()
    accuracy = judge(a, sf.svdvals(a))
    assert accuracy.holds, accuracy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_diagonal_keeps_relative_accuracy(isa: str, dtype: torch.dtype) -> None:
    """No rotation touches a diagonal: all digits of every value survive, over 28 orders of magnitude."""
    a, _ = matrix("diagonal_over_decades", dtype, (33, 33))
    exact = a.diagonal().sort(descending=True).values
    # one unit for the bisection bracket, one for the rounding
    assert ((sf.svdvals(a) - exact).abs() <= 2 * torch.finfo(dtype).eps * exact).all()


def test_hill_alpha_that_follows(isa: str) -> None:
    """An error of the values moves alpha by at most the sum of its partial derivatives times that error."""
    for name in ("gaussian", "power_law", "heavy_tailed_entries"):
        a, exact = matrix(name, torch.float32, (128, 128))
        s = torch.from_numpy(exact.astype(np.float64))
        alpha = sf.hill_alpha(s**2)
        slope = torch.autograd.functional.jacobian(lambda v: sf.hill_alpha(v**2), s)
        error = constant(128) * torch.finfo(torch.float32).eps * s[0]
        ours = sf.hill_alpha(sf.svdvals(a).double() ** 2)
        # twice: the derivative itself moves by less than its own size over so small a step
        assert (ours - alpha).abs() <= 2 * slope.abs().sum() * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gram_driver_keeps_its_stated_error(dtype: torch.dtype) -> None:
    # sqrt(k eps) of the float64 Gram matrix, and the rounding of the result
    stated = (33 * torch.finfo(torch.float64).eps) ** 0.5 + torch.finfo(dtype).eps
    for name in ZOO:
        for shape in ((40, 33), (31, 90)):
            a, exact = matrix(name, dtype, shape)
            values = sf.svdvals(a, driver="gram").numpy().astype(np.longdouble)
            subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
            assert np.abs(values - exact).max() <= stated * exact[0] + subnormal, (name, shape)
