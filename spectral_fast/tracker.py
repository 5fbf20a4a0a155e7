"""SpectralTracker: following spectra from one exact look to the next, mostly for one read of the weight a look.

A look costs one product Z = A^T A [V, P Omega] (the V: :mod:`spectral_fast.subspace`), with Omega random probes
and P the projection that takes V out of them. It gives

    the leading values    Ritz values, corrected by what the iteration still has to gain, which is their error,
                          too; where that is above the tolerance, V goes through another product
    |A|_F                 exactly, from the same read
    sum lambda^2          |Z_V|_F^2 + the mean of |A^T A P omega|^2 (Hutchinson 1990). It is known at the last exact
                          look and the probes are the same, so only its change is estimated; and there, of
                          lambda^2, only what the line nearest to it over the bulk does not explain
    the exponents         from these, through their influence functions (:mod:`spectral_fast.influence`)
    the drift             |P (A^T A - A_0^T A_0) omega| / |P A^T A omega|, A_0 of the last exact look

The errors of the exponents are proportional to the drift; how large is learned at every exact look, where the
tracker first says what it would have said. There it also learns whether following an exponent beats holding it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from spectral_fast import _ops
from spectral_fast.calibration import EXPONENTS, Calibration
from spectral_fast.influence import Influence, influence
from spectral_fast.powerlaw import fit_powerlaw
from spectral_fast.stats import SpectralStats, spectral_stats
from spectral_fast.subspace import Ritz, ritz

Products = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Matrices = Tensor | Sequence[Tensor]

# Below that many values an exact look costs no more than a tracked one (docs/tracking.md).
LEAST_TRACKED = 256
# Vectors beyond the leading k: all speed up the iteration, half are followed one by one in the exponents.
_GUARD = 16
_FOLLOWED_GUARD = 8
_TRACE_PROBES = 8
_DRIFT_PROBES = 8
_MOST_PRODUCTS = 4
_COLD_PRODUCTS = 40


@dataclass(frozen=True, eq=False)
class TrackedStats:
    """What a tracker knows of each matrix, between two exact looks.

    Tensors have the shape of the batch, leading ones one dimension more; float64. ``*_error`` is the standard
    error against an exact look at the same weights; +-1.96 of it cover 95 %.
    """

    spectral_norm: Tensor
    """sigma_1"""
    spectral_norm_error: Tensor
    frobenius_norm: Tensor
    """sqrt(sum sigma^2), exact"""
    stable_rank: Tensor
    """sum sigma^2 / sigma_1^2"""
    stable_rank_error: Tensor
    leading: Tensor
    """(\\*, k) the largest singular values, descending"""
    leading_error: Tensor
    alpha_hill: Tensor
    """Hill estimate over the upper half of lambda"""
    alpha_hill_error: Tensor
    alpha: Tensor
    """Clauset-Shalizi-Newman exponent of lambda above the xmin of the last exact look"""
    alpha_error: Tensor
    xmin: Tensor
    """that xmin"""
    alpha_ranksize: Tensor
    """-slope of ln sigma_k on ln k"""
    alpha_ranksize_error: Tensor
    drift: Tensor
    """relative change of A^T A outside its leading directions since the last exact look"""
    needs_exact: Tensor
    """bool: an error is above the tolerance"""
    held: tuple[str, ...] = ()
    """exponents that are the last exact look's, since following them did not beat that at the looks so far"""


class SpectralTracker:
    """Follows a batch of matrices of one shape while they are trained.

    ``exact`` looks exactly and anchors the tracker; ``track`` follows from there. It keeps k + 40 float32 numbers
    a column (the shorter side) and matrix: 22 % of a square weight of 256 columns, 5.5 % at 1024, less for oblong
    ones. Matrices of fewer than 256 columns are looked at exactly instead: that costs no more.

    Args:
        k: how many leading values to give.
        tolerance: relative, of sigma_1 and the stable rank. Products are repeated, four at most, until
            the error is below a tenth of it; ``needs_exact`` tells where it then still is above.
        alpha_tolerance: relative, of the exponents; ``needs_exact`` tells where their error is above.
        generator: for the probes, on the CPU. None: one of the tracker's own, seeded with 0; the global one
            is never used.
        products: computes (A^T A X, sum of squares of A) in place of the operator gram_product, for weights
            that lie elsewhere.
    """

    def __init__(
        self,
        k: int = 16,
        *,
        tolerance: float = 1e-3,
        alpha_tolerance: float = 0.02,
        generator: torch.Generator | None = None,
        products: Products | None = None,
    ) -> None:
        if k < 1:
            raise ValueError(f"SpectralTracker: k must be at least 1, got {k}")
        if not (tolerance > 0 and alpha_tolerance > 0):
            raise ValueError(f"SpectralTracker: tolerances must be > 0, got {tolerance}, {alpha_tolerance}")
        self.k = k
        self.tolerance = tolerance
        self.alpha_tolerance = alpha_tolerance
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._products: Products = _ops.gram_product if products is None else products
        self._anchor: _Anchor | None = None
        self._calibration = Calibration()

    def exact(self, A: Matrices) -> SpectralStats:
        """Looks exactly at the matrices and tracks from there.

        A: (\\*, m, n) or a sequence of (m, n) matrices of one shape; real dtypes.
        Returns the statistics, with svdvals. Raises TypeError or ValueError as spectral_stats does.
        """
        stats = spectral_stats(_stacked(A), return_svdvals=True)
        self.anchor(A, stats)
        return stats

    def anchor(self, A: Matrices, stats: SpectralStats) -> None:
        """Tracks from an exact look made elsewhere: stats of A, with svdvals. Learns from it first."""
        assert stats.svdvals is not None
        S = stats.svdvals.reshape(-1, stats.svdvals.shape[-1])
        if S.shape[-1] < LEAST_TRACKED:
            return
        batch = _Batch(A, self._products)
        at = {name: getattr(stats, name).reshape(-1) for name in EXPONENTS}
        previous = self._anchor
        if previous is not None and previous.fits(batch):
            look = self._follow(previous, batch)
            frozen = fit_powerlaw(S.to(torch.float64).square(), xmin=previous.xmin).alpha
            exact = {**at, "alpha": frozen}
            self._calibration.learn_gain(look.ritz, S)
            self._calibration.learn_exponents(look.exponents, previous.at, exact, look.errors)
            V = previous.vectors
        else:
            self._calibration = Calibration()
            V = self._draw(batch, self.k + _GUARD)
            V = torch.linalg.qr(V).Q
        self._anchor = self._anchored(batch, V, S, at, stats.xmin.reshape(-1))

    def track(self, A: Matrices) -> TrackedStats:
        """The statistics of the matrices as they are now.

        A: as in ``exact``, the matrices the tracker was anchored at. A matrix with a NaN or an infinity has
        NaN statistics and needs an exact look; the tracker takes it up again when it is finite.

        Raises RuntimeError before the first exact look, ValueError for another shape.
        """
        shape = _batch_shape(A)
        first = A if isinstance(A, Tensor) else A[0]
        if min(first.shape[-2:]) < LEAST_TRACKED:
            return _exactly(spectral_stats(_stacked(A), return_svdvals=True), self.k)
        if self._anchor is None:
            raise RuntimeError("SpectralTracker.track: nothing to follow yet; call exact() first")
        batch = _Batch(A, self._products)
        if not self._anchor.fits(batch):
            raise ValueError(
                f"SpectralTracker.track: the last exact look was at {self._anchor.count} matrices of "
                f"{self._anchor.n} columns, these are {batch.count} of {batch.n}; call exact() for them"
            )
        stats = self._report(self._follow(self._anchor, batch))
        tensors = {f.name: getattr(stats, f.name) for f in fields(stats) if f.name != "held"}
        shaped = {name: x.reshape(shape + x.shape[1:]) for name, x in tensors.items()}
        return TrackedStats(**shaped, held=stats.held)

    def _draw(self, batch: _Batch, count: int) -> Tensor:
        noise = torch.randn(batch.count, batch.n, count, generator=self._generator, dtype=torch.float32)
        return noise.to(batch.device, batch.dtype)

    def _anchored(self, batch: _Batch, V: Tensor, S: Tensor, at: dict[str, Tensor], xmin: Tensor) -> _Anchor:
        """The anchor at an exact look, from vectors near the leading ones."""
        known = S[:, : self.k].to(torch.float64)
        for _ in range(_COLD_PRODUCTS):
            Z, _ = batch.products(V)
            found = ritz(V, Z)
            V = found.vectors
            off = (found.squares[:, : self.k].sqrt() - known).abs() / known
            if not bool((off > self.tolerance).any()):
                break
        probes = self._draw(batch, _TRACE_PROBES + _DRIFT_PROBES)
        outside = probes - V @ (V.mT @ probes)
        probes[..., -_DRIFT_PROBES:] = outside[..., -_DRIFT_PROBES:]
        X = torch.cat([V, outside], -1)
        Z, energy = batch.products(X)
        control = _line_through_squares(S.to(torch.float64).square()[:, V.shape[-1] :])
        return _Anchor(
            count=batch.count,
            n=batch.n,
            vectors=V,
            probes=probes,
            reference=Z[..., -_DRIFT_PROBES:].clone(),
            control=control,
            squares=_sum_of_squares(X, Z, energy, control, V.shape[-1]),
            exact_squares=S.to(torch.float64).pow(4).sum(-1),
            influence=influence(S, xmin, self.k + _FOLLOWED_GUARD),
            at=at,
            xmin=xmin,
        )

    def _follow(self, anchor: _Anchor, batch: _Batch) -> _Look:
        """The product, more of them where the leading values need it; moves the anchor's vectors."""
        V = anchor.vectors
        split = V.shape[-1]
        overlap = V.mT @ anchor.probes
        X = torch.cat([V, anchor.probes - V @ overlap], -1)
        Z, energy = batch.products(X)
        found = ritz(V, Z[..., :split])
        moved = _sum_of_squares(X, Z, energy, anchor.control, split) - anchor.squares

        # The last probes had no part in the leading directions of the exact look, nor has what is taken out now.
        bulk = Z[..., -_DRIFT_PROBES:] + Z[..., :split] @ overlap[..., -_DRIFT_PROBES:]
        change, bulk = (X - V @ (V.mT @ X) for X in (bulk - anchor.reference, bulk))
        drift = (_energy(change) / _energy(bulk)).sqrt()

        limit = self.tolerance / 10
        for _ in range(_MOST_PRODUCTS - 1):
            pending = self._calibration.pending_error(found.pending[:, : self.k])
            late = (pending[:, 0] > limit) | (pending > 20 * limit).any(-1)
            if not bool(late.any()):
                break
            where = late.nonzero()[:, 0]
            again = ritz(found.vectors[where], batch.products(found.vectors[where], where)[0])
            found = Ritz(*(old.index_copy(0, where, new) for old, new in zip(found, again, strict=True)))
        anchor.vectors = found.vectors

        gain = self._calibration.gain * found.pending
        values = found.squares.sqrt() * (1 + gain)
        lead = self.k + _FOLLOWED_GUARD
        leading = values[:, :lead].square()
        squares = anchor.exact_squares + moved
        sums = torch.stack(
            [energy - leading.sum(-1), squares - leading.square().sum(-1)],
            -1,
        )
        followed = anchor.influence.exponents(leading, sums, drift)
        errors = anchor.influence.errors(drift)
        return _Look(found, values, energy, followed, errors, drift, anchor)

    def _report(self, look: _Look) -> TrackedStats:
        calibration, k = self._calibration, self.k
        values = look.values[:, :k]
        sigma = values[:, 0]
        # What is left is rounding, of the exact look's float32 as of the product's.
        rounding = 2 * torch.finfo(torch.float32).eps * sigma
        pending = calibration.pending_error(look.ritz.pending[:, :k])
        error = ((pending * values).square() + rounding[:, None].square()).sqrt()
        exponents, held = {}, []
        needs = ~(2 * error[:, 0] <= self.tolerance * sigma)
        for name in EXPONENTS:
            last = look.anchor.at[name]
            value, spread, hold = calibration.exponent(name, look.exponents[name], last, look.errors[name])
            exponents[name], exponents[name + "_error"] = value, spread
            needs |= spread > self.alpha_tolerance * last.abs()
            if hold:
                held.append(name)
        stable_rank = look.energy / sigma.square()
        return TrackedStats(
            spectral_norm=sigma,
            spectral_norm_error=error[:, 0],
            frobenius_norm=look.energy.sqrt(),
            stable_rank=stable_rank,
            stable_rank_error=2 * stable_rank * error[:, 0] / sigma,
            leading=values,
            leading_error=error,
            **exponents,
            xmin=look.anchor.xmin,
            drift=look.drift,
            needs_exact=needs,
            held=tuple(held),
        )


@dataclass(eq=False)
class _Anchor:
    """What is kept of an exact look; `vectors` go on with every look."""

    count: int
    n: int
    vectors: Tensor
    probes: Tensor
    reference: Tensor
    control: Tensor
    squares: Tensor
    exact_squares: Tensor
    influence: Influence
    at: dict[str, Tensor]
    xmin: Tensor

    def fits(self, batch: _Batch) -> bool:
        return (self.count, self.n) == (batch.count, batch.n) and self.vectors.device == batch.device


@dataclass(frozen=True, eq=False)
class _Look:
    ritz: Ritz
    values: Tensor
    energy: Tensor
    exponents: dict[str, Tensor]
    errors: dict[str, Tensor]
    drift: Tensor
    anchor: _Anchor


class _Batch:
    """Matrices as the products need them: more rows than columns, one batch dimension."""

    def __init__(self, A: Matrices, products: Products) -> None:
        self._products = products
        self._matrices: Matrices
        if isinstance(A, Tensor):
            tall = A.detach() if A.shape[-2] >= A.shape[-1] else A.detach().mT
            self._matrices = tall.reshape(-1, *tall.shape[-2:])
            first = tall
        else:
            self._matrices = [a.detach() if a.shape[0] >= a.shape[1] else a.detach().mT for a in A]
            first = self._matrices[0]
        self.count = len(self._matrices)
        self.n = first.shape[-1]
        self.device = first.device
        self.dtype = _ops.compute_dtype(first.dtype)

    def products(self, X: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A^T A X (B, n, s) and the sums of squares (B,), of the matrices at `where`."""
        if isinstance(self._matrices, Tensor):
            return self._products(self._matrices if where is None else self._matrices[where], X)
        chosen = self._matrices if where is None else [self._matrices[i] for i in where.tolist()]
        both = [self._products(a, x) for a, x in zip(chosen, X, strict=True)]
        return torch.stack([Z for Z, _ in both]), torch.stack([energy for _, energy in both])


def _stacked(A: Matrices) -> Tensor:
    return A.detach() if isinstance(A, Tensor) else torch.stack([a.detach() for a in A])


def _batch_shape(A: Matrices) -> tuple[int, ...]:
    return tuple(A.shape[:-2]) if isinstance(A, Tensor) else (len(A),)


def _energy(X: Tensor) -> Tensor:
    return X.to(torch.float64).square().sum((-1, -2))


def _sum_of_squares(X: Tensor, Z: Tensor, energy: Tensor, control: Tensor, split: int) -> Tensor:
    """sum lambda^2 = tr M^2, estimated from Z = M X, M = A^T A and X = [V, P omega_1, ...], `split` columns V.

    tr P M^2 P is the mean of |M P omega|^2. What is known exactly corrects it: tr P M P from the energy, and tr P.
    """
    directions = _energy(Z[..., :split])
    probes, images = (Y[..., split:-_DRIFT_PROBES].to(torch.float64) for Y in (X, Z))
    count = probes.shape[-1]
    inside = (X[..., :split].to(torch.float64) * Z[..., :split]).sum((-1, -2))
    off_trace = (probes * images).sum((-1, -2)) / count - (energy - inside)
    off_size = _energy(probes) / count - (X.shape[-2] - split)
    return directions + _energy(images) / count - control[:, 0] * off_trace - control[:, 1] * off_size


def _line_through_squares(lam: Tensor) -> Tensor:
    """(B, 2): slope and constant of the line nearest to lambda^2 over lambda (B, n)."""
    mean, square_mean = lam.mean(-1), lam.square().mean(-1)
    spread = (lam - mean[:, None]).square().mean(-1).clamp_min(torch.finfo(lam.dtype).tiny)
    slope = ((lam - mean[:, None]) * lam.square()).mean(-1) / spread
    return torch.stack([slope, square_mean - slope * mean], -1)


def _exactly(stats: SpectralStats, k: int) -> TrackedStats:
    """An exact look in the form of a tracked one."""
    assert stats.svdvals is not None
    zero = torch.zeros_like(stats.spectral_norm)
    leading = stats.svdvals[..., :k].to(torch.float64)
    return TrackedStats(
        spectral_norm=stats.spectral_norm,
        spectral_norm_error=zero,
        frobenius_norm=stats.frobenius_norm,
        stable_rank=stats.stable_rank,
        stable_rank_error=zero,
        leading=leading,
        leading_error=torch.zeros_like(leading),
        alpha_hill=stats.alpha_hill,
        alpha_hill_error=zero,
        alpha=stats.alpha,
        alpha_error=zero,
        xmin=stats.xmin,
        alpha_ranksize=stats.alpha_ranksize,
        alpha_ranksize_error=zero,
        drift=zero,
        needs_exact=torch.zeros_like(zero, dtype=torch.bool),
    )
