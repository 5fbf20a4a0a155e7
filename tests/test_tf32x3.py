"""The pieces of the model that decides about tf32x3."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks import tf32x3 as model
from benchmarks.tf32x3 import TensorCore, nearest, tf32x3, truncate

LAST = 2.0**-23  # of float32, for a number in [1, 2)


def uniform(*shape: int) -> Tensor:
    """In [1, 2), signs at random."""
    signs = torch.randint(0, 2, shape) * 2 - 1
    return (1 + torch.rand(shape)) * signs


def test_hi_is_to_nearest_with_ties_away() -> None:
    unit = 2.0**-10
    x = 1 + unit * torch.tensor([0, 0.25, 0.5 - 2.0**-13, 0.5, 0.75, 1, 1.5])
    assert torch.equal(model.to_tf32(x), 1 + unit * torch.tensor([0.0, 0, 0, 1, 1, 1, 2]))
    assert torch.equal(model.to_tf32(-x), -model.to_tf32(x))


def test_hi_and_lo_lose_the_last_bit_at_most() -> None:
    x = uniform(10000) * 2.0 ** torch.randint(-30, 30, (10000,))
    hi, lo = model.split(x)
    for part in (hi, lo):
        assert torch.equal(part, model.read_tf32(part))  # fits the format
    unit = torch.frexp(x).exponent.sub(1).double().exp2()
    lost = (x.double() - hi.double() - lo.double()) / unit
    assert set(lost.unique().tolist()) == {-LAST, 0, LAST}


def test_truncation_is_toward_zero_and_nearest_is_not() -> None:
    x = uniform(10000).double() * (1 + torch.rand(10000, dtype=torch.float64))
    cut, rounded = truncate(x), nearest(x)
    assert torch.equal(cut, cut.float().double())
    assert (cut.abs() <= x.abs()).all()
    unit = torch.frexp(x).exponent.sub(24).double().exp2()
    lost = (x - cut).abs() / unit
    assert lost.max() < 1
    # A mean of 10000 uniform numbers is within 5 / sqrt(12 * 10000) of 1/2, or of 0 for those of nearest.
    assert abs(lost.mean() - 0.5) < 0.0145
    assert abs(((x - rounded) * x.sign() / unit).mean()) < 0.0145


@pytest.mark.parametrize(("group", "guard"), [(8, 2), (4, 1)])
def test_alignment_cuts_every_addend(group: int, guard: int) -> None:
    """Beside an addend of 1, one below the last bit that is kept is lost, however many there are."""
    core = TensorCore(truncate, group, guard)
    kept = LAST * 2.0**-guard
    x = torch.full((1, group), kept, dtype=torch.float64)
    one, y = torch.ones(1, 1, dtype=torch.float64), torch.ones(group, 1, dtype=torch.float64)
    assert core.add(one, x * (1 - LAST), y) == 1
    assert core.add(one, x, y) == 1 + LAST * (group >> guard)
    assert TensorCore(truncate, group).add(one, x * (1 - LAST), y) == 1 + LAST * ((group >> guard) - 1)


def test_a_tensor_core_with_guard_bits_errs_by_its_addends() -> None:
    x, y = (uniform(8, 8).double() for _ in range(2))
    c = uniform(8, 8).double()
    for core in (TensorCore(truncate, 8, 2), TensorCore(truncate, 4, 1)):
        largest = torch.cat([c[None], x.T[:, :, None] * y[:, None, :]]).abs().amax(0)
        # 9 addends cut at a quarter of a last bit, and the sum at its own.
        allowed = (9 / 4 * largest + (c + x @ y).abs()) * 2 * LAST
        assert ((core.add(c, x, y) - (c + x @ y)).abs() <= allowed).all()


@pytest.mark.parametrize("multiply", [model.plain, model.chain])
def test_float32_is_torchs_product_to_rounding(multiply: model.Product) -> None:
    x, y = uniform(40, 100), uniform(100, 30)
    got = multiply(x, y)
    assert got.dtype == torch.float32
    # Higham 2002, section 3.1: k products and additions, each to half an eps, both here and there.
    allowed = 2 * 100 * LAST / 2 * 1.01 * (x.abs() @ y.abs())
    assert ((got - x @ y).abs() <= allowed).all()
    assert not torch.equal(got, model.exact(x, y))


def bias(multiply: model.Product) -> float:
    """How much shorter than they are products of positive numbers come out, in last bits."""
    x, y = uniform(64, 256).abs(), uniform(256, 64).abs()
    want = x.double() @ y.double()
    return float((1 - multiply(x, y).double() / want).mean()) / LAST


def test_truncation_shortens_a_product_and_rounding_does_not() -> None:
    outside, inside = tf32x3(TensorCore(truncate)), tf32x3(TensorCore(truncate), outside=False)
    # c is cut by half a unit on the average, 1/4 to 1/2 of 2^-23 of it: outside twice a step, the first time
    # at half of its size; inside by each of 32 groups and more, at half of the size on the average.
    assert 0.25 < bias(outside) < 1
    assert bias(inside) > 32 / 2 / 4
    # Each of 4096 products errs by at most 17 roundings of half a unit; a fifth of truncation's is no bias.
    assert abs(bias(tf32x3(TensorCore(nearest)))) < 0.05
    assert abs(bias(model.plain)) < 0.05


def test_the_band_has_the_values_of_the_matrix() -> None:
    """With products in float64 only the rounding of entries is left: below the bound by far."""
    a = torch.randn(96, 96)
    assert model.error(a, model.exact) < 1
    assert model.error(a, model.plain) < 2
    band = model.band(a, model.exact)
    outside = band - band.triu().tril(model.BLOCK)
    assert torch.equal(outside, torch.zeros_like(outside))
