"""The CUDA stage `bidiagonal`, run on the CPU: what it packs, and the singular values that it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_fast.cuda.sources import Types
from tests.cuda_emulator import Emulator
from tests.cuda_stages.bidiagonal import BLOCK, MAX_WARPS, TYPES, Bidiagonal, bidiagonalize
from tests.oracles.accuracy import constant
from tests.oracles.svd_oracle import singular_values
from tests.oracles.zoo import FLOAT64_ONLY, ZOO

STRIDE = 3 * BLOCK - 1
IDS = ["-".join(str(t).removeprefix("torch.") for t in types) for types in TYPES]
every_type = pytest.mark.parametrize("types", TYPES, ids=IDS)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def upper_band(a: Tensor) -> Tensor:
    return a.triu() - a.triu(BLOCK + 1)


def scaled(a: Tensor) -> Tensor:
    """By the power of two that `load` takes."""
    largest = a.abs().max()
    return a if largest == 0 else torch.ldexp(a, 1 - torch.frexp(largest).exponent)


def values(matrix: Tensor, types: Types) -> np.ndarray:
    if types.scalar == torch.float64:
        return singular_values(matrix)
    return torch.linalg.svdvals(matrix.double()).numpy()  # errs by 2^-29 of float32's eps, times some units


def error(result: Bidiagonal, matrix: int, band: Tensor, types: Types) -> float:
    """Largest error of a value, in eps of the values' dtype, relative to the largest value."""
    d, e = result.d[matrix].double(), result.e[matrix].double()
    assert e[-1] == 0
    exact = values(band, types)
    difference = np.abs(values(torch.diag(d) + torch.diag(e[:-1], 1), types) - exact).max()
    return float(difference / (exact[0] if exact[0] else 1)) / torch.finfo(types.scalar).eps


def allowed(types: Types, n: int) -> float:
    """In the same unit: what the contract leaves to all stages together, c, in the dtype calculated in.

    Where that is double and the values are float32, LAPACK's own errors are larger than 2^-29 c: two, under
    n^(1/2) eps each.
    """
    if types.scalar == types.wide:
        return constant(n)
    return (constant(n) + 2 * n**0.5) * 2.0**-29


@every_type
@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 70])
def test_pack_band(types: Types, n: int) -> None:
    room = torch.randn(2, 80, 96, generator=generator(n), dtype=torch.float64).to(types.scalar)
    a = room[:, 3:, 5:90]
    packed = bidiagonalize(Emulator(), types, a, n, warps=1).packed
    for matrix in range(2):
        band = upper_band(a[matrix, :n, :n]).to(types.wide)
        rows, columns = torch.nonzero(band, as_tuple=True)
        expected = torch.zeros_like(packed[0])
        expected[rows * STRIDE + columns + BLOCK - 1] = band[rows, columns]
        assert torch.equal(packed[matrix], expected)


@every_type
@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 34, 64, 65, 66, 97])
def test_keeps_the_values_of_any_size(types: Types, n: int) -> None:
    a = scaled(torch.randn(n, n, generator=generator(n))).to(types.scalar)
    result = bidiagonalize(Emulator("random", seed=n), types, a[None], n, warps=4)
    assert error(result, 0, upper_band(a), types) <= allowed(types, n)
    # Nothing that was filled in is left: a residue of one unit would hide among the roundings.
    diagonals = result.band[0, : (n + BLOCK) * (STRIDE + 1)].view(-1, STRIDE + 1)
    assert not diagonals[:, : BLOCK - 1].any()
    assert not diagonals[:, 2 * BLOCK :].any()


@every_type
@pytest.mark.parametrize("kind", [*ZOO, *FLOAT64_ONLY])
def test_keeps_the_values_of_any_kind(types: Types, kind: str) -> None:
    n = 70
    make = {**ZOO, **FLOAT64_ONLY}[kind]
    a = upper_band(scaled(make(n, n, generator(1)).double())).to(types.scalar)
    result = bidiagonalize(Emulator(), types, a[None], n, warps=4)
    assert error(result, 0, a, types) <= allowed(types, n)


HALVINGS = {torch.float32: (30, 46, 50, 60, 66, 75, 140), torch.float64: (440, 452, 490, 530, 1060)}


@pytest.mark.parametrize(
    ("types", "halvings"),
    [pytest.param(t, h, id=f"{i}-{h}") for t, i in zip(TYPES, IDS, strict=True) for h in HALVINGS[t.wide]],
)
def test_rows_whose_squares_underflow(types: Types, halvings: int) -> None:
    """H of a tiny row is applied to large ones. CuPy has float32's subnormal numbers flushed to zero."""
    n = 70
    a = upper_band(scaled(torch.randn(n, n, generator=generator(2), dtype=torch.float64)))
    a[:40:3] = torch.ldexp(a[:40:3], torch.tensor(-halvings))
    a = a.to(types.scalar)
    torch.set_flush_denormal(True)
    try:
        result = bidiagonalize(Emulator(), types, a[None], n, warps=2)
    finally:
        torch.set_flush_denormal(False)
    assert error(result, 0, a, types) <= allowed(types, n)


@every_type
def test_an_inexact_rsqrt_is_made_good(types: Types) -> None:
    """CUDA's may err by two units; half of the digits are enough: what remains is of second order."""
    n, lost = 70, "0x1p-30" if types.wide == torch.float64 else "0x1p-16"

    def edit(source: str) -> str:
        assert source.count("rsqrt(square)") == 1
        return source.replace("rsqrt(square)", f"rsqrt(square) * (1 + Wide({lost}))")

    a = scaled(torch.randn(n, n, generator=generator(5), dtype=torch.float64)).to(types.scalar)
    result = bidiagonalize(Emulator(edit=edit), types, a[None], n, warps=2)
    assert error(result, 0, upper_band(a), types) <= allowed(types, n)


def test_values_in_float_at_the_size_of_a_layer() -> None:
    types, n = Types(torch.float32, torch.float32), 300
    a = scaled(upper_band(torch.randn(n, n, generator=generator(3))))
    result = bidiagonalize(Emulator(), types, a[None], n, warps=MAX_WARPS[types.wide])
    assert error(result, 0, a, types) <= constant(n)


@every_type
@pytest.mark.parametrize("n", [1, 33, 170])
def test_the_number_of_warps_changes_no_bit(types: Types, n: int) -> None:
    """And threads that are early or late see no other sweep's rows half done."""
    a = torch.randn(1, n, n, generator=generator(n), dtype=torch.float64).to(types.scalar)
    one = bidiagonalize(Emulator(), types, a, n, warps=1)
    for warps in (2, 3, 5, MAX_WARPS[types.wide]):
        many = bidiagonalize(Emulator("random", seed=warps), types, a, n, warps)
        assert all(map(torch.equal, one, many))


@every_type
def test_the_batch_changes_no_bit(types: Types) -> None:
    n = 70
    a = torch.randn(3, n, n, generator=generator(4), dtype=torch.float64).to(types.scalar)
    a[0] = torch.nan
    batch = bidiagonalize(Emulator(), types, a, n, warps=2)
    for matrix in (1, 2):
        alone = bidiagonalize(Emulator(), types, a[matrix : matrix + 1], n, warps=2)
        assert all(torch.equal(x[matrix], y[0]) for x, y in zip(batch, alone, strict=True))
