"""tail_stats against exact spectra: accuracy, honest errors, and its contract."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from spectral_fast import _ops, spectral_stats, stats_from_svdvals
from spectral_fast.backends import reference
from spectral_fast.quadrature import Krylov, block_lanczos, estimate_spectrum
from spectral_fast.tail import TailStats, _estimates, tail_stats
from tests.oracles import stats_oracle

ESTIMATED = ("spectral_norm", "stable_rank", "leading", "alpha_hill", "alpha_ranksize", "alpha")
FIELDS = tuple(field.name for field in dataclasses.fields(TailStats))
PROBES, STEPS = 8, 12


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spectra(n: int) -> dict[str, torch.Tensor]:
    """Singular values, descending, float64."""
    rng = np.random.default_rng(7)
    k = np.arange(1, n + 1)
    gaussian = np.linalg.svd(rng.standard_normal((n, n)), compute_uv=False) / (2 * np.sqrt(n))
    spiked = gaussian.copy()
    spiked[:5] = (10, 8, 6, 4, 2)
    tall = np.linalg.svd(rng.standard_normal((4 * n, n)), compute_uv=False)
    found = {"gaussian": gaussian, "tall": tall, "k^-0.35": k**-0.35, "k^-0.6": k**-0.6, "spiked": spiked}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def with_values(values: torch.Tensor, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """A (rows, n) matrix with these singular values."""
    n, g = len(values), seeded(len(values) + rows)
    left = torch.linalg.qr(torch.randn(rows, n, dtype=torch.float64, generator=g)).Q
    right = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=g)).Q
    return ((left * values) @ right).to(dtype)


def same_bits(a: TailStats, b: TailStats) -> bool:
    pairs = ((getattr(a, name), getattr(b, name)) for name in FIELDS)
    return all(torch.equal(x.nan_to_num(-7.0), y.nan_to_num(-7.0)) for x, y in pairs)


# ------------------------------------------------------------------ against the exact values


@pytest.mark.parametrize("name", list(spectra(768)))
def test_accuracy_at_768(name):
    """The targets: stable rank 1e-3, alpha_hill 2 % rms; over 4 sets of probes."""
    A = with_values(spectra(768)[name], 900, torch.float32)
    exact = spectral_stats(A, return_svdvals=True)
    found = [tail_stats(A, xmin=exact.xmin, generator=seeded(seed)) for seed in range(4)]
    hill = torch.stack([one.alpha_hill for one in found])
    for one in found:
        assert abs(one.stable_rank / exact.stable_rank - 1) < 1e-3
        # Squares are summed in float64, of float32 entries: what the exact path's values lose is larger.
        assert abs(one.frobenius_norm / exact.frobenius_norm - 1) < 1e-6
        # Off the curve a value may be its neighbour: those of these spectra are at most 1 % apart.
        torch.testing.assert_close(one.leading, exact.svdvals[:16].double(), rtol=0.01, atol=0)
    assert (hill / exact.alpha_hill - 1).square().mean().sqrt() < 0.02


def test_float64_sees_converged_values_to_rounding():
    values = spectra(512)["k^-0.6"]
    found = tail_stats(with_values(values, 512, torch.float64), generator=seeded(1))
    # Rayleigh-Ritz of an orthonormal basis: a modest multiple of eps, here of lambda_1 = 1 against lambda_16
    # = 0.036.
    torch.testing.assert_close(found.leading, values[:16], rtol=1e-12, atol=0)
    assert found.leading_error.max() < 1e-12


def trials(count: int, n: int, sigmas: list[torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """z = (estimate - exact) / error over `count` draws of the probes, and error / exact and the error made.

    Gaussian probes look the same from every basis: only the singular values matter, and a diagonal matrix
    does.
    """
    rng, parts, chosen = seeded(seed), [], []
    for i in range(count):
        sigma = sigmas[i % len(sigmas)]
        chosen.append(sigma)
        parts.append(diagonal_lanczos(sigma, torch.randn(n, PROBES, generator=rng, dtype=torch.float64)))
    krylov = Krylov(*(torch.cat([getattr(p, f) for p in parts]) for f in ("T", "below", "energy")))
    S = torch.stack(chosen)
    exact = stats_from_svdvals(S)
    spectrum = estimate_spectrum(krylov, n, STEPS, torch.finfo(torch.float32))
    found = _estimates(spectrum, 16, PROBES, exact.xmin, torch.finfo(torch.float32).eps)
    results = {}
    for name in ESTIMATED:
        truth = S[:, :16] if name == "leading" else getattr(exact, name)
        made = (found[name] - truth) / truth
        results[name] = torch.stack([made, found[name + "_error"] / truth])
    return results


def diagonal_lanczos(sigma: torch.Tensor, probes: torch.Tensor) -> Krylov:
    with pytest.MonkeyPatch.context() as patch:
        product = lambda A, X: (A.square().mT * X, A.square().sum((-1, -2)))  # noqa: E731
        patch.setattr(_ops, "gram_product", product)
        patch.setattr(_ops, "block_lanczos", reference.block_lanczos)
        return block_lanczos(sigma[None, None], probes, STEPS)


def check_coverage(results: dict[str, torch.Tensor], least: float) -> None:
    for name, (made, error) in results.items():
        covered = (made.abs() <= 1.96 * error).to(torch.float64).mean()
        assert covered >= least, f"{name}: {covered:.3f} of the intervals hold the exact value"
        ideal = made.square().mean().sqrt()
        # Where all is rounding, which this walk in float64 does not make, the floor of float32 stands.
        width = error.mean() / ideal
        assert width <= 2 or error.max() < 1e-5, f"{name}: {width:.2f} times the ideal width"


def real_spectra() -> list[torch.Tensor]:
    spectra = stats_oracle.minilm().values()
    return [torch.from_numpy(np.sort(np.sqrt(evals))[::-1].copy()) for evals in spectra]


def interval_spectra() -> list[torch.Tensor]:
    """Real and random ones. Exact power laws are left out: docs/tail.md, "Limits"."""
    return [*real_spectra(), *(s for name, s in spectra(384).items() if not name.startswith("k^"))]


def test_intervals_cover():
    sigmas = interval_spectra()
    # 92 % are due; of 200 trials that are 95 % covered fewer than 90 % are one time in 1000.
    check_coverage(trials(200, 384, sigmas, seed=3), 0.90)


@pytest.mark.slow
def test_intervals_cover_1000_trials():
    sigmas = interval_spectra()
    check_coverage(trials(1000, 384, sigmas, seed=4), 0.92)


def test_alpha_in_the_converged_tail_is_the_fit():
    values = spectra(512)["spiked"]
    A = with_values(values, 512, torch.float32)
    S = torch.linalg.svdvals(A).to(torch.float64)
    xmin = float(S[4].square())  # itself of the tail: must not fall out for its rounding
    expected = 1 + 5 / (S[:5].square() / xmin).log().sum()
    found = tail_stats(A, xmin=xmin, generator=seeded(0))
    assert abs(found.alpha - expected) <= 1.96 * found.alpha_error
    assert found.alpha_error < 1e-4
    assert found.xmin == xmin
    for nothing in (0.0, -1.0, float("inf"), float("nan")):  # thresholds without a tail above them
        found = tail_stats(A, xmin=nothing, generator=seeded(0))
        assert found.alpha.isnan()
        assert found.alpha_error.isnan()


# ------------------------------------------------------------------ contract


def test_reproducible_and_leaves_global_randomness_alone():
    A = torch.randn(2, 450, 400)
    before = torch.get_rng_state()
    first = tail_stats(A)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert same_bits(first, tail_stats(A))
    assert same_bits(tail_stats(A, generator=seeded(2)), tail_stats(A, generator=seeded(2)))
    assert not same_bits(first, tail_stats(A, generator=seeded(2)))


def test_batch_transpose_and_strides_agree():
    A = torch.randn(2, 3, 400, 520)
    whole = tail_stats(A, xmin=700.0)
    assert whole.leading.shape == (2, 3, 16)
    assert whole.alpha.shape == (2, 3)
    for other, pick in (
        (tail_stats(A[1, 2], xmin=700.0), (1, 2)),
        (tail_stats(A.mT, xmin=700.0), ...),
        (tail_stats(A.flip(0).mT.contiguous().mT.flip(0), xmin=700.0), ...),
    ):
        for name in FIELDS:
            # Another order of sums: float32 rounding, which the readout of the bulk passes on a few times
            # over.
            torch.testing.assert_close(getattr(other, name), getattr(whole, name)[pick], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_its_float32_copy(dtype):
    A = torch.randn(420, 400).to(dtype)
    found, wide = tail_stats(A), tail_stats(A.float())
    torch.testing.assert_close(found.alpha_hill, wide.alpha_hill, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.leading, wide.leading, rtol=1e-5, atol=0)


def test_a_bad_matrix_spoils_only_itself():
    A = torch.randn(4, 400, 400)
    clean = tail_stats(A)
    A[1, 3, 4] = float("nan")
    A[2, 0, 0] = float("inf")
    A[3] *= 1e25  # finite, but its squares are not
    found = tail_stats(A)
    for name in FIELDS:
        assert getattr(found, name)[1:].isnan().all(), name
    torch.testing.assert_close(found.alpha_hill[0], clean.alpha_hill[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_zero_and_identity(value):
    """Every value equal, more often than the block has columns: nothing is left to iterate on."""
    found = tail_stats(value * torch.eye(400))
    torch.testing.assert_close(
        found.leading, torch.full((16,), value, dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert found.frobenius_norm == value * 20
    assert found.stable_rank.isnan() if value == 0 else abs(found.stable_rank - 400) < 1e-2


def test_low_rank_keeps_its_top():
    A = torch.randn(400, 5) @ torch.randn(5, 400)
    found, exact = tail_stats(A, k=5), torch.linalg.svdvals(A.double())[:5]
    # Ritz values of float32: a few eps sigma_1, relative to values within a factor of two of it.
    torch.testing.assert_close(found.leading, exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("shape", [(4, 5), (3, 100, 80), (2, 0, 30), (0, 500, 400)])
def test_small_and_empty_go_the_exact_way(shape):
    A = torch.randn(shape)
    found, exact = tail_stats(A, xmin=1.0), spectral_stats(A, return_svdvals=True)
    k = min(16, *shape[-2:])
    assert torch.equal(found.leading, exact.svdvals[..., :k].to(torch.float64))
    assert (found.alpha_hill_error.nan_to_num(0) == 0).all()
    assert torch.equal(found.alpha_hill.nan_to_num(-1), exact.alpha_hill.nan_to_num(-1))


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "must be Tensor", {"A": [1.0]}),
        (ValueError, r"real floating-point tensor of shape \(\*, m, n\)", {"A": torch.ones(3)}),
        (ValueError, "real floating-point", {"A": torch.ones(3, 3, dtype=torch.complex64)}),
        (ValueError, "k must be an integer of at least 1, got 0", {"k": 0}),
        (ValueError, "n_probes must be an integer of at least 2, got 1", {"n_probes": 1}),
        (ValueError, "n_steps must be an integer of at least 4, got 3.0", {"n_steps": 3.0}),
        (ValueError, "k = 90 values need", {"k": 90, "n_probes": 8, "n_steps": 10}),
        (TypeError, "'xmin' must be float", {"xmin": "1"}),
        (ValueError, "does not broadcast", {"xmin": torch.ones(3)}),
    ],
)
def test_bad_arguments(error, message, arguments):
    given = {"A": torch.ones(2, 400, 400)} | arguments
    with pytest.raises(error, match=message):
        tail_stats(given.pop("A"), **given)
