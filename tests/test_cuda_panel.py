"""csrc/cuda/panel.cu, run by the emulator: its factors, its limits, and what it does to singular values."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from spectral_fast.cuda.sources import Types
from tests.cuda_emulator import Emulator
from tests.cuda_stages.panel import BLOCK, TYPES, Factors, factor
from tests.oracles.zoo import ZOO

EMULATE = Emulator(order="random")
TYPE_NAMES = [f"{t.scalar}-{t.wide}".replace("torch.", "") for t in TYPES]


def random_panel(rows: int, dtype: torch.dtype, batch: int = 2) -> Tensor:
    g = torch.Generator().manual_seed(rows)
    return torch.randn(batch, rows, BLOCK, dtype=torch.float64, generator=g).to(dtype)


def check(panel: Tensor, out: Factors) -> None:
    """The form of the factors exactly; I - V T V^T orthogonal and Q R = A to rounding."""
    rows = panel.shape[1]
    eps = torch.finfo(panel.dtype).eps
    top = out.a[:, :BLOCK]
    assert torch.equal(top, top.triu())
    assert torch.equal(out.a[:, BLOCK:], panel[:, BLOCK:])
    assert torch.equal(out.t, out.t.triu())
    ones = torch.eye(rows, BLOCK, dtype=panel.dtype).expand_as(out.v)
    assert torch.equal(out.v.triu(), ones)
    v, t, a = out.v.double(), out.t.double(), panel.double()
    q = torch.eye(rows, dtype=torch.float64) - v @ t @ v.mT
    # T and V are stored rounded: a reflector is orthogonal to a unit or two. At worst they add, over b.
    defect = q.mT @ q - torch.eye(rows, dtype=torch.float64)
    assert defect.abs().amax() <= BLOCK * eps
    # A column is rounded by each of up to b updates, half a unit of its norm at most and independently.
    r = torch.zeros_like(a)
    r[:, :BLOCK] = top
    assert ((q @ r - a).norm(dim=1) <= BLOCK**0.5 * eps * a.norm(dim=1)).all()


@pytest.mark.parametrize("types", TYPES, ids=TYPE_NAMES)
@pytest.mark.parametrize("right", [False, True], ids=["left", "right"])
@pytest.mark.parametrize(
    ("rows", "scratch"),
    [
        *((32, False), (96, False), (512, False), (544, False), (1120, False)),
        *((32, True), (512, True), (1120, True)),
    ],
)
def test_factors(types: Types, right: bool, rows: int, scratch: bool) -> None:
    panel = random_panel(rows, types.scalar)
    out = factor(EMULATE, types, panel, right=right, scratch=scratch)
    check(panel, out)
    outside = [x[:, BLOCK:] if right else x[:, :, BLOCK:] for x in out.storage]
    assert all(x.isnan().all() for x in outside)


def test_r_is_that_of_lapack() -> None:
    panel = random_panel(416, torch.float64)
    out = factor(EMULATE, TYPES[1], panel, right=False, scratch=False)
    r, tau = torch.geqrf(panel)
    assert torch.allclose(out.a[:, :BLOCK], r[:, :BLOCK].triu(), rtol=0, atol=1e-13)
    assert torch.allclose(out.v.tril(-1), r.tril(-1), rtol=0, atol=1e-13)
    assert torch.allclose(out.t.diagonal(dim1=1, dim2=2), tau, rtol=0, atol=1e-13)


@pytest.mark.parametrize("types", TYPES, ids=TYPE_NAMES)
def test_a_matrix_has_the_same_bits_in_any_batch(types: Types) -> None:
    panel = random_panel(288, types.scalar, batch=3)
    together = factor(EMULATE, types, panel, right=False, scratch=True)
    for i in range(3):
        alone = factor(EMULATE, types, panel[i : i + 1], right=False, scratch=True)
        for x, y in zip(together[:3], alone[:3], strict=True):
            assert torch.equal(x[i], y[0])


def degenerate(name: str, dtype: torch.dtype) -> Tensor:
    panel = random_panel(160, dtype, batch=1)
    if name == "zero":
        panel.zero_()
    elif name == "zero columns":
        panel[:, :, [0, 5, 31]] = 0
    elif name == "identical columns":
        panel[:] = panel[:, :, :1].clone()
    elif name == "nothing below the diagonal":
        panel = panel.triu()
    elif name == "tiny columns":  # around where sums of squares are taken for zero
        panel *= 2.0 ** -torch.arange(30, 30 + BLOCK, dtype=dtype)
        panel[:, 0, 0] = 1
    elif name == "squares are subnormal":
        panel[:, :, 1:] *= torch.finfo(dtype).smallest_normal ** 0.5 / 2
    else:
        assert name == "one large entry"
        panel *= 1e-7
        panel[:, 77, 3] = 1.5
    return panel


@pytest.mark.parametrize("types", TYPES, ids=TYPE_NAMES)
@pytest.mark.parametrize(
    "name",
    [
        *("zero", "zero columns", "identical columns", "nothing below the diagonal", "tiny columns"),
        *("squares are subnormal", "one large entry"),
    ],
)
def test_degenerate_columns(types: Types, name: str) -> None:
    panel = degenerate(name, types.scalar)
    out = factor(EMULATE, types, panel, right=True, scratch=False)
    assert all(x.isfinite().all() for x in out[:3])
    v, t, a = out.v[0].double(), out.t[0].double(), panel[0].double()
    q = torch.eye(len(v), dtype=torch.float64) - v @ t @ v.T
    eps = torch.finfo(types.scalar).eps
    assert (q.T @ q - torch.eye(len(v), dtype=torch.float64)).abs().max() <= BLOCK * eps
    r = torch.zeros_like(a)
    r[:BLOCK] = out.a[0, :BLOCK]
    # Dropped columns have a norm of 2^-40 (float32) or 2^-450 at most, beside a largest entry near one.
    dropped = 2.0**-40 if types.scalar == torch.float32 else 2.0**-450
    assert ((q @ r - a).norm(dim=0) <= BLOCK**0.5 * eps * a.norm(dim=0) + dropped).all()
    if name == "nothing below the diagonal":
        assert torch.equal(out.a, panel)
        assert not out.t.any()


def scaled(x: Tensor) -> Tensor:
    """The largest entry in [1, 2), as the pipeline makes it."""
    return torch.ldexp(x, 1 - torch.frexp(x.abs().max())[1]) if x.any() else x


def band(types: Types, a: Tensor) -> Tensor:
    """The upper band of a, n x n, by panels; the updates are made in float64 and rounded."""
    a = a.clone()
    panel = functools.partial(factor, EMULATE, types, scratch=False)
    for k in range(0, len(a), BLOCK):
        left = panel(a[None, k:, k : k + BLOCK], right=False)
        v, t = left.v[0].double(), left.t[0].double()
        a[k : k + BLOCK, k : k + BLOCK] = left.a[0, :BLOCK]
        a[k + BLOCK :, k : k + BLOCK] = 0
        if k + BLOCK == len(a):
            break
        c = a[k:, k + BLOCK :].double()
        a[k:, k + BLOCK :] = c - v @ (t.T @ (v.T @ c))
        right = panel(a[None, k : k + BLOCK, k + BLOCK :].mT, right=True)
        w, t = right.v[0].double(), right.t[0].double()
        a[k : k + BLOCK, k + BLOCK :] = 0
        a[k : k + BLOCK, k + BLOCK : k + 2 * BLOCK] = right.a[0, :BLOCK].T
        c = a[k + BLOCK :, k + BLOCK :].double()
        a[k + BLOCK :, k + BLOCK :] = c - ((c @ w) @ t) @ w.T
    return a


def error_in_eps(types: Types, name: str, n: int, seed: int | None = None) -> float:
    g = torch.Generator().manual_seed(n if seed is None else seed)
    if name == "identical columns":
        x = torch.randn(n, 1, dtype=torch.float64, generator=g).repeat(1, n)
    else:
        x = ZOO[name](n, n, g)
    a = scaled(x).to(types.scalar)
    reduced = band(types, a)
    assert torch.equal(reduced, reduced.triu().tril(BLOCK))
    exact, values = torch.linalg.svdvals(a.double()), torch.linalg.svdvals(reduced.double())
    error = (values - exact).abs().max() / torch.finfo(types.scalar).eps / exact[0].clamp(min=1e-300)
    print(f"{name} {n} {types}: {error:.2f} eps sigma_1")
    return float(error)


FLOAT_TYPES = [TYPES[0], TYPES[2]]
NAMES = [
    *("gaussian", "graded", "graded_upward", "power_law", "rank_deficient", "one_huge_entry"),
    *("zero_rows_and_columns", "identical columns", "ones", "zeros", "diagonal_over_decades"),
]


@pytest.mark.parametrize("types", FLOAT_TYPES, ids=["fast double", "slow double"])
@pytest.mark.parametrize("name", NAMES)
def test_error_of_the_reduction(types: Types, name: str) -> None:
    # svdvals may err by 4 altogether.
    assert error_in_eps(types, name, 256) <= 2


@pytest.mark.parametrize("types", FLOAT_TYPES, ids=["fast double", "slow double"])
def test_error_of_equal_values(types: Types) -> None:
    # They see the norm of all roundings, of the stored updates too: rms eps / 2 sqrt(3), twice for each
    # of 8 panels, 2 sqrt(n) times that against sigma_1 = sqrt(n): 2.3. Single ones range from 2.4 to 3.3:
    # the mean of many is judged.
    errors = [error_in_eps(types, "all_equal", 256, seed) for seed in range(16)]
    assert sum(errors) / len(errors) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("types", FLOAT_TYPES, ids=["fast double", "slow double"])
@pytest.mark.parametrize("name", ["gaussian", "power_law", "graded", "identical columns"])
def test_error_of_a_large_reduction(types: Types, name: str) -> None:
    assert error_in_eps(types, name, 768) <= 2
