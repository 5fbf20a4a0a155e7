"""CUDA stage `direct`, run on the CPU: its bidiagonals have the values of the matrices they came from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectral_fast.cuda.sources import Types
from tests.cuda_emulator import Emulator
from tests.cuda_stages.direct import TYPES, direct
from tests.cuda_stages.values import values
from tests.oracles.accuracy import judge
from tests.oracles.zoo import ZOO

EMULATE = Emulator()
_, DOUBLE, SINGLE = TYPES
SHAPES = [(1, 1), (2, 1), (3, 3), (31, 30), (32, 32), (33, 33), (128, 7), (65, 64), (128, 64)]


def svdvals(types: Types, A: Tensor) -> Tensor:
    """The values of a batch: scaled to [1, 2), bidiagonalized, bisected."""
    largest = A.double().abs().amax((1, 2))
    exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1, 0).to(torch.int32)
    scaled = torch.ldexp(A.double(), -exponent[:, None, None]).to(types.scalar)
    d, e = direct(EMULATE, types, scaled)
    assert (e[:, -1] == 0).all()
    return values(EMULATE, types, d, e, exponent, torch.zeros_like(exponent))["out"]


def zoo(m: int, n: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.stack([make(m, n, generator) for make in ZOO.values()]).to(dtype)


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zoo_in_one_batch(types: Types, shape: tuple[int, int]) -> None:
    """Within the contract, value by value: degenerate columns, zeros, ranks, huge and tiny entries."""
    A = zoo(*shape, types.scalar)
    if types == DOUBLE and shape[1] > 40:
        A = A[:4]  # the oracle takes a second a matrix
    S = svdvals(types, A)
    assert S.isfinite().all()
    # Float32 arithmetic flushes subnormal results to zero; float64's are converted.
    flushed = torch.finfo(torch.float32).smallest_normal if types == SINGLE else 0
    for name, a, s in zip(ZOO, A, S, strict=False):
        accuracy = judge(a, s)
        assert accuracy.error <= accuracy.allowed + flushed, (name, accuracy)


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_what_is_bidiagonal_stays_as_it_is(types: Types) -> None:
    """Every column and row is degenerate: its reflector is the identity."""
    g = torch.Generator().manual_seed(3)
    d, e = torch.rand(2, 1, 40, generator=g, dtype=types.scalar) - 0.5
    e[:, -1] = 0
    d[0, 7] = e[0, 9] = 0
    A = torch.diag_embed(d) + torch.diag_embed(e[:, :-1], 1)
    A = torch.cat([A, torch.zeros(1, 5, 40, dtype=A.dtype)], dim=1)
    ours = direct(EMULATE, types, A)
    assert torch.equal(ours[0], d.to(types.wide))
    assert torch.equal(ours[1], e.to(types.wide))


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_reflectors_are_orthogonal_to_rounding(types: Types) -> None:
    """The Frobenius norm stays, where columns differ by orders of magnitude.

    An orthogonal reflector moves it by the roundings of its entries, half an eps each and random in sign; one
    of a norm with few digits moves it by that norm's error.
    """
    g = torch.Generator().manual_seed(4)
    scale = 2.0 ** -torch.randint(0, 60, (1, 1, 48), generator=g, dtype=torch.float64)
    A = ((2 * torch.rand(20, 64, 48, generator=g, dtype=torch.float64) - 1) * scale).to(types.scalar)
    d, e = direct(EMULATE, types, A)
    before = A.double().square().sum((1, 2))
    after = d.double().square().sum(1) + e.double().square().sum(1)
    assert ((after - before).abs() <= 8 * torch.finfo(types.wide).eps * before).all()


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_rows_and_matrices_lie_apart(types: Types) -> None:
    """Padding is not read, and neighbours change no bit."""
    g = torch.Generator().manual_seed(5)
    storage = torch.full((3, 50, 41), torch.nan, dtype=types.scalar)
    storage[:, :45, :37] = 2 * torch.rand(3, 45, 37, generator=g) - 1
    storage[1, 0, 0] = torch.nan
    together = direct(EMULATE, types, storage[:, :45, :37])
    for i in (0, 2):
        alone = direct(EMULATE, types, storage[i, None, :45, :37].contiguous())
        assert all(torch.equal(t[i], a[0]) for t, a in zip(together, alone, strict=True))
