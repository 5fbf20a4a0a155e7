"""The Triton statistics kernels under the interpreter; test_triton_numerics.py runs this file.

TRITON_INTERPRET has to be set before triton is imported and would reach every other test, so it has a process
of its own. What runs is the host code of backends/triton.py on CPU tensors, in blocks so small that a
spectrum takes several of each and a rest, and with logarithms as inaccurate as a GPU's; the oracle and the
bounds are those of test_stats_values.py. Every workspace and output starts as NaN (conftest.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from spectral_fast import _ops
from spectral_fast.backends import reference_stats
from spectral_fast.backends import triton as backend
from spectral_fast.powerlaw import PowerLawFit
from spectral_fast.triton import stats as kernels
from tests.oracles import stats_oracle as oracle
from tests.test_stats_values import (
    FIELDS,
    FIT,
    ZOO,
    batch,
    bounds,
    check,
    chosen,
    fit_bounds,
    same_bits,
    tensor,
)

NAMES = [*_ops.SMOOTH_FIELDS, *_ops.FITTED_FIELDS]
SMALL = {"TILE": 32, "CANDIDATES": 32, "TAIL": 32}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in SMALL.items():
        monkeypatch.setattr(kernels, name, size)


def ulp_off(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A float64 function moved up or down an ulp or not at all, by the bits of its argument; zero stays."""

    def moved(x: np.ndarray) -> np.ndarray:
        y = function(x)
        assert y.dtype == np.float64
        side = (x.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % 3
        off = np.where(side == 2, np.nextafter(y, np.inf), np.nextafter(y, -np.inf))
        return np.where((side == 0) | (y == 0), y, off)

    return moved


@pytest.fixture(autouse=True)
def logarithms_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's exp and log err by up to an ulp, NumPy's by little over a half."""
    for name, function in (("create_exp", np.exp), ("create_log", np.log)):
        moved = ulp_off(function)
        monkeypatch.setattr(
            interpreter.InterpreterBuilder, name, lambda self, arg, moved=moved: self.unary_op(arg, moved)
        )


def fields(S: torch.Tensor, shape: tuple[int, int] | None) -> dict[str, torch.Tensor]:
    smooth, fitted = backend.stats_from_svdvals(S, *(shape or (None, None)))
    return dict(zip(NAMES, [*smooth.unbind(-1), *fitted.unbind(-1)], strict=True))


def fit(x: torch.Tensor, xmin: torch.Tensor | None = None) -> PowerLawFit:
    record, n_tail = backend.fit_powerlaw(x, xmin)
    alpha, stderr, start, distance = record.unbind(-1)
    return PowerLawFit(alpha, stderr, start, distance, n_tail)


def twin_fit(x: torch.Tensor, xmin: torch.Tensor | None) -> PowerLawFit:
    record, n_tail = reference_stats.fit_powerlaw(x, xmin)
    alpha, stderr, start, distance = record.unbind(-1)
    return PowerLawFit(alpha, stderr, start, distance, n_tail)


def numbers(named: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in named.items()}


def check_every_field(s: np.ndarray, shape: tuple[int, int] | None) -> None:
    got = numbers(fields(tensor(s), shape))
    best = chosen(s**2, got["xmin"])
    want = oracle.stats(s, shape, best)
    assert set(got) == set(want) == set(FIELDS)
    check(got, want, bounds(s, best, want))


def test_logarithms_err_by_an_ulp() -> None:
    x = np.linspace(0.1, 3, 1000)
    apart = (ulp_off(np.log)(x) - np.log(x)) / np.spacing(np.abs(np.log(x)))
    assert {-1, 0, 1} <= set(apart) <= {-1, -0.5, 0, 0.5, 1}  # half of one at a power of 2
    assert ulp_off(np.log)(np.ones(1)) == 0


def test_the_interpreter_runs_and_memory_is_poisoned() -> None:
    assert type(kernels.distance_kernel).__name__ == "InterpretedFunction"
    assert torch.empty(5).isnan().all()
    assert torch.empty_like(torch.ones(5), dtype=torch.float64).isnan().all()
    assert torch.ones(2).new_empty((3, 4), dtype=torch.float64).isnan().all()
    # three tiles and a rest of each kind, in most of the zoo
    assert sum(len(s) > 3 * max(SMALL.values()) and len(s) % 32 != 0 for s in ZOO.values()) > 5


@pytest.mark.parametrize("name", ZOO)
def test_every_field(name: str) -> None:
    check_every_field(ZOO[name], (3 * len(ZOO[name]), len(ZOO[name])))


@pytest.mark.parametrize("name", ["square_64", "half_zeros", "zero_3"])
def test_every_shape(name: str) -> None:
    r = len(ZOO[name])
    for shape in (None, (r, r), (r, 4 * r + 1)):
        check_every_field(ZOO[name], shape)


@pytest.mark.parametrize("n", [4, 31, 32, 33, 63, 64, 65, 96, 97, 127, 129])
def test_every_remainder(n: int) -> None:
    """A value more or less than a tile, and than a block of candidates; the last of an even number a zero."""
    g = np.random.default_rng(n)
    s = np.sort((1 - g.random(n)) ** -0.4)[::-1].copy()
    s[-1] *= n % 2
    check_every_field(s, (n, 2 * n))


@pytest.mark.parametrize("name", ZOO)
def test_fit_powerlaw(name: str) -> None:
    x = np.random.default_rng(1).permutation(ZOO[name] ** 2)
    got = numbers(fit(tensor(x))._asdict())
    best = chosen(x, got["xmin"])
    check(got, best._asdict(), fit_bounds(x, best))
    assert got["n_tail"] == 0 or got["xmin"] in x


@pytest.mark.parametrize("name", ZOO)
def test_fit_powerlaw_with_xmin_given(name: str) -> None:
    x = np.sort(ZOO[name] ** 2)
    top = float(x[-1])
    thresholds = [float(x[len(x) // 2]), float(x[0]) * 0.5, float(x[-2:].mean()), top, 2 * top]
    if name == "rounded":
        thresholds += [0.0, -1.0, math.inf, math.nan]
    got = fit(tensor(x).expand(len(thresholds), -1), tensor(thresholds))
    for i, xmin in enumerate(thresholds):
        one = {name: value[i].item() for name, value in got._asdict().items()}
        want = oracle.fit_at(x, xmin) if xmin > 0 else oracle.NO_FIT
        if want.n_tail == 0:
            assert one["n_tail"] == 0
            assert all(math.isnan(one[name]) for name in FIT if name != "n_tail")
        else:
            check(one, want._asdict(), fit_bounds(np.append(x, xmin), want))


def test_of_candidates_that_tie_the_smallest_xmin_wins() -> None:
    """Equal distances in one tile, in one lane of two tiles, and in no candidate: handed to the kernel."""
    n, inf = 100, math.inf
    x = torch.arange(n, 0, -1, dtype=torch.float64).expand(4, n).contiguous()
    distances = torch.full((4, n), inf, dtype=torch.float64)
    distances[0, [3, 9, 20]] = tensor([0.25, 0.125, 0.125])
    distances[1, [7, 7 + 32, 7 + 64, 98]] = tensor([0.125, 0.125, 0.125, 0.5])
    distances[2, [40, 71, 90]] = tensor([0.125, 0.125, 0.25])
    slopes = torch.full((4, n), 2.0, dtype=torch.float64)
    record, tail = torch.empty(4, 4, dtype=torch.float64), torch.empty(4, dtype=torch.int64)
    kernels.fit_kernel[(4,)](x, slopes, distances, n, record, tail, TILE=32)
    alpha, stderr, xmin, distance = record.unbind(-1)
    assert tail.tolist() == [21, 72, 72, 0]
    assert xmin[:3].tolist() == [n - 20, n - 71, n - 71]
    assert distance[:3].tolist() == [0.125] * 3
    assert torch.equal(stderr[:3], 2 / tail[:3].double().sqrt())
    assert alpha[:3].tolist() == [3.0] * 3
    assert record[3].isnan().all()


def hard_batch() -> torch.Tensor:
    s = batch().reshape(6, 60)
    s[5, 30:] = 0  # rows differ in their number of positive values
    s[1] = 0
    s[2, 17] = math.nan
    s[3, 5] = math.inf
    return s


def test_a_batch_is_its_rows() -> None:
    """Bit for bit, whatever the neighbours, at any place, contiguous or not."""
    s = hard_batch()
    strided = s.reshape(2, 3, 60).permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not strided.is_contiguous()
    before = s.clone()
    whole, fitted, above = fields(strided, (60, 90)), fit(strided**2), fit(strided**2, tensor(0.5))
    for i in range(6):
        at = (i // 3, i % 3)
        for name, value in fields(s[i], (60, 90)).items():
            assert value.shape == ()
            assert same_bits(whole[name][at], value), name
        for name, value in fit(s[i] ** 2)._asdict().items():
            assert same_bits(getattr(fitted, name)[at], value), name
        for name, value in fit(s[i] ** 2, tensor(0.5))._asdict().items():
            assert same_bits(getattr(above, name)[at], value), name
    assert same_bits(s, before)


def test_rows_that_are_no_spectrum_are_what_the_reference_says() -> None:
    s = hard_batch()[1:4]
    s = torch.cat([s, torch.full((2, 60), math.nan), hard_batch()[:1], -s[:1] - 1])
    s[4], s[5, 7] = math.inf, -math.inf
    smooth, fitted = reference_stats.stats_from_svdvals(s, 60, 90)
    for got, want in zip(backend.stats_from_svdvals(s, 60, 90), (smooth, fitted), strict=True):
        assert same_bits(got, want)
    for got, want in zip(fit(s), twin_fit(s, None), strict=True):
        assert same_bits(got, want)
    tail = fitted[:, _ops.FITTED_FIELDS.index("n_tail")]
    assert tail.tolist() == [0] * 7


def test_a_nan_sorted_to_the_end_is_seen() -> None:
    """As a sort by bits leaves one with its sign set."""
    s = hard_batch()[:1]
    s[0, -1] = -math.nan
    smooth, fitted = backend._stats(kernels, s, 60, 90)
    tail = _ops.FITTED_FIELDS.index("n_tail")
    assert smooth.isnan().all()
    assert fitted[0, tail] == 0
    assert torch.cat([fitted[0, :tail], fitted[0, tail + 1 :]]).isnan().all()


@pytest.mark.parametrize("power", [-900, 900])
def test_no_scale_matters(power: int) -> None:
    """2^power is exact, and so is the division by the largest: the fields of degree 0 keep their bits."""
    s, c = tensor(ZOO["pareto_2.5"]), 2.0**power
    one, two = fields(s, (400, 200)), fields(c * s, (400, 200))
    scaled = ("spectral_norm", "frobenius_norm", "nuclear_norm", "xmin", "mp_edge")
    logs = ("log_norm", "alpha_weighted", "log_alpha_norm")
    for name in set(NAMES) - {*scaled, *logs}:
        assert same_bits(one[name], two[name]), name
    for name in scaled[:3]:
        assert same_bits(c * one[name], two[name]), name
    shift = 2 * power * math.log10(2)
    # ln sigma_1 carries an eps of itself, and the products with alpha and 1 / ln 10 two more
    for name, factor in zip(logs, (1.0, one["alpha"], one["alpha"]), strict=True):
        assert abs(two[name] - one[name] - factor * shift) <= 4 * oracle.EPS * factor * abs(shift), name


def test_values_that_differ_in_their_last_bits() -> None:
    """Each gap is good to 8 eps relative (log1p 6, its argument 2), sums of n of them to n eps more.

    The bounds of test_stats_values.py allow an error of an eps in each ln x, which is as large as these gaps.
    """
    x = 1 + np.sort(np.random.default_rng(3).random(150)) * 1e-12
    got = numbers(fit(tensor(x))._asdict())
    want = oracle.fit_at(x, got["xmin"])
    relative = (150 + 8) * oracle.EPS
    assert got["n_tail"] == want.n_tail
    assert abs(got["alpha"] - want.alpha) <= relative * want.alpha
    # t exp(-t) <= 0.37 for t = (alpha - 1) ln(x / xmin), a product of two such numbers
    assert abs(got["ks_distance"] - want.ks_distance) <= relative + 2 * oracle.EPS


def test_values_of_the_whole_float64_range() -> None:
    """Ratios that overflow, and sums that do not: each ln x is good to an eps of itself."""
    for x in ([1.0, 1e-322], [1e308, 3e-310, 2e-310], [1e300, 1e200, 1.0, 1e-200, 1e-320]):
        got = numbers(fit(tensor(x))._asdict())
        answers = {xmin: oracle.fit_at(x, xmin) for xmin in x[1:]}
        best = answers[got["xmin"]]
        assert best.ks_distance <= min(answer.ks_distance for answer in answers.values()) + oracle.TIE
        check(got, best._asdict(), fit_bounds(np.array(x), best))
        given = numbers(fit(tensor(x), tensor(x[-1]))._asdict())
        check(given, answers[x[-1]]._asdict(), fit_bounds(np.array(x), answers[x[-1]]))


def test_negative_eigenvalues_are_left_out() -> None:
    x = tensor(ZOO["pareto_20"] ** 2)
    for got, want in zip(fit(torch.cat([x, -x, x.new_zeros(3)])), fit(x), strict=True):
        assert same_bits(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_is_computed_in_float64(dtype: torch.dtype) -> None:
    s = batch()[0, :2].to(dtype)
    low, high = fields(s, (60, 90)), fields(s.double(), (60, 90))
    for name in NAMES:
        assert same_bits(low[name], high[name]), name
    for got, want in zip(fit(s), fit(s.double()), strict=True):
        assert same_bits(got, want)


def test_no_values_and_no_matrices() -> None:
    for shape in ((0,), (3, 0), (0, 5), (0, 3, 5)):
        s = torch.empty(shape)
        for got, want in zip(
            backend.stats_from_svdvals(s, None, None),
            reference_stats.stats_from_svdvals(s, None, None),
            strict=True,
        ):
            assert got.shape == want.shape
            assert same_bits(got, want)
        for got, want in zip(fit(s), twin_fit(s, None), strict=True):
            assert got.shape == want.shape
            assert got.dtype == want.dtype


def test_spectral_stats_is_stats_of_the_values() -> None:
    A = torch.randn(2, 50, 40)
    A[1, 3, 3] = math.nan
    S, smooth, fitted = backend.spectral_stats(A, None)
    assert same_bits(S, _ops.svdvals_ex(A, None, False)[0])
    for got, want in zip((smooth, fitted), backend.stats_from_svdvals(S, 50, 40), strict=True):
        assert same_bits(got, want)
    assert smooth[0].isfinite().all()
    assert smooth[1].isnan().all()
