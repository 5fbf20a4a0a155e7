"""SpectralTracker: following spectra from one exact look to the next, mostly by one read of the weight.

A look costs one product with A^T A. It gives

    the leading values    Ritz values (spectral_fast.subspace), corrected by what the iteration still has to
                          gain, which is their error, too; where it is above the tolerance, another product
                          follows
    |A|_F                 exactly, from the same read
    the exponents         from the leading values and two sums over the others (spectral_fast.bulk)

How large the errors are is learned at every exact look, where the tracker first says what it would have
said; there it also learns whether following an exponent beats holding the last exact one
(spectral_fast.calibration).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from spectral_fast import _ops
from spectral_fast.bulk import PROBES, Bulk, Followed, at_exact_look
from spectral_fast.calibration import Calibration
from spectral_fast.influence import EXPONENTS
from spectral_fast.look import Look, Probes, Repeat, look
from spectral_fast.powerlaw import fit_powerlaw
from spectral_fast.stats import SpectralStats, spectral_stats
from spectral_fast.subspace import ritz

Products = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Matrices = Tensor | Sequence[Tensor]

# Below that many values an exact look costs little more than a tracked one, or less: 0.64 ms and 0.51 at 256
# columns, 0.49 and 0.40 at 192, 0.19 and 0.37 at 128 (6 matrices, 2 cores).
LEAST_TRACKED = 256
# Vectors beyond the leading k speed up the iteration, and find what rises from the bulk: with 16 vectors
# sigma_1 was 1.3e-3 off while the learning rate warmed up, with 24 7e-4, with 32 4e-4 (docs/tracking.md).
# Half of those beyond k are followed one by one in the exponents.
_GUARD, _LEAST_BLOCK = 16, 32
_MOST_PRODUCTS = 4
# Where one or a few leading values are followed, and nothing else.
_LEADERS, _GUARDS_A_TURN, _TURNS = 8, 7, 3
# From vectors drawn at random: as long as they turn much from look to look, the exponents of weights that
# stand still move, by up to 9e-4; after 24 products by 3e-4.
_COLD_PRODUCTS = 24


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
    """Follows a batch of matrices of one shape and real dtype while they are trained.

    ``exact`` looks exactly and anchors the tracker; ``track`` follows from there. It keeps k + 36 float32
    numbers a column (the shorter side) and matrix, k + 16 without the exponents, k counted as 16 at least:
    20 % of a square weight of 256 columns, 5.1 % at 1024, less for oblong ones. Matrices of fewer than 256
    columns, or 4 (k + 16), are looked at exactly instead: that costs hardly more.

    Args:
        k: how many leading values to give.
        exponents: whether to follow the three alphas. Without, they and the drift are NaN in what ``track``
            returns; with k = 1 that is the stable rank for the least cost.
        tolerance: relative, of sigma_1 and the stable rank. Products are repeated, four at most, until
            the error is below a tenth of it; ``needs_exact`` tells where it then still is above.
        alpha_tolerance: relative, of the exponents; ``needs_exact`` tells where their error is above by what
            it has grown since the exact look.
        generator: for the probes, on the CPU. None: one of the tracker's own, seeded with 0; the global one
            is never used.
        products: computes (A^T A X, sum of squares of A) in place of the operator gram_product, for weights
            whose rows lie in several places: ``anchor`` and ``track`` then take any part of the rows of each
            matrix, and matrices of 256 rows and columns or more.

    Raises ValueError for k below 1 and for a tolerance that is not positive.
    Source: docs/tracking.md.
    """

    def __init__(
        self,
        k: int = 16,
        *,
        exponents: bool = True,
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
        self.exponents = exponents
        self.tolerance = tolerance
        self.alpha_tolerance = alpha_tolerance
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._whole = products is None
        self._products: Products = _ops.gram_product if products is None else products
        self._anchor: _Anchor | None = None
        self._calibration = Calibration()

    def exact(self, A: Matrices) -> SpectralStats:
        """Looks exactly at the matrices and tracks from there.

        A: (\\*, m, n) or a sequence of (m, n) matrices of one shape; real dtypes.

        Returns the statistics, with svdvals; fields (\\*), of a sequence (its length). Raises TypeError or
        ValueError as spectral_stats does, RuntimeError where products were given: what is here is no whole
        matrix then.
        """
        if not self._whole:
            raise RuntimeError("SpectralTracker.exact: with products given, look elsewhere and call anchor()")
        stats = spectral_stats(_stacked(A), return_svdvals=True)
        self.anchor(A, stats)
        return stats

    def anchor(self, A: Matrices, stats: SpectralStats) -> None:
        """Tracks from an exact look made elsewhere; learns from it first how large errors were.

        A: as in ``exact``.
        stats: what :func:`spectral_fast.spectral_stats` says of A, with svdvals.
        """
        assert stats.svdvals is not None
        S = stats.svdvals.reshape(-1, stats.svdvals.shape[-1])
        if self._exactly_instead(S.shape[-1]):
            return
        batch = _Batch(A, self._products, self._whole)
        previous = self._anchor
        if previous is not None and previous.kind == batch.kind:
            self._learn(previous, batch, S, stats)
            V = previous.vectors.all
        else:
            self._calibration = Calibration()
            V = self._draw(batch, max(self.k + _GUARD, _LEAST_BLOCK)) * batch.kind.n**-0.5
            always = Repeat(-1.0, self.k, _COLD_PRODUCTS)
            V = batch.look(V, self._draw(batch, 1)[..., 0], None, always).vectors
        V = self._converged(batch, V, S)
        bulk = None
        if self.exponents:
            probes = self._draw(batch, PROBES)
            xmin, lead = stats.xmin.reshape(-1), self._followed_values
            bulk = at_exact_look(S, xmin, lead, V, probes, batch.products, self._values)
        at = torch.stack([getattr(stats, name).reshape(-1) for name in EXPONENTS])
        in_turn = bulk is None and self.k <= _LEADERS // 2
        vectors = _InTurn.of(V) if in_turn else _Together(V)
        self._anchor = _Anchor(batch.kind, vectors, bulk, at, stats.xmin.reshape(-1))

    def track(self, A: Matrices) -> TrackedStats:
        """The statistics of the matrices as they are now.

        A: as in ``exact``, the matrices the tracker was anchored at. A matrix with a NaN or an infinity has
            NaN statistics and needs an exact look; the tracker takes it up again when it is finite.

        Returns fields (\\*), of a sequence (its length), float64, each estimate with its standard error.
        Raises RuntimeError before the first exact look, ValueError for another shape.
        """
        shape = _batch_shape(A)
        if not len(A):
            raise ValueError("SpectralTracker.track: there are no matrices")
        first = A if isinstance(A, Tensor) else A[0]
        if self._whole and self._exactly_instead(min(first.shape[-2:])):
            return _exactly(spectral_stats(_stacked(A), return_svdvals=True), self.k)
        if self._anchor is None:
            raise RuntimeError("SpectralTracker.track: nothing to follow yet; call exact() first")
        batch = _Batch(A, self._products, self._whole)
        if self._anchor.kind != batch.kind:
            raise ValueError(
                f"SpectralTracker.track: the last exact look was at {self._anchor.kind}, these are "
                f"{batch.kind}; call exact() for them"
            )
        stats = self._report(self._follow(self._anchor, batch), self._anchor)
        if shape == (batch.kind.count,):
            return stats
        tensors = {f.name: getattr(stats, f.name) for f in fields(stats) if f.name != "held"}
        shaped = {name: x.reshape(shape + x.shape[1:]) for name, x in tensors.items()}
        return TrackedStats(**shaped, held=stats.held)

    def _exactly_instead(self, n: int) -> bool:
        return n < max(LEAST_TRACKED, 4 * (self.k + _GUARD))

    @property
    def _followed_values(self) -> int:
        return self.k + _GUARD // 2

    def _draw(self, batch: _Batch, count: int) -> Tensor:
        kind = batch.kind
        shape = (kind.count, kind.n, count)
        noise = torch.randn(shape, generator=self._generator, dtype=torch.float32, device="cpu")
        return noise.to(kind.device, kind.dtype)

    def _converged(self, batch: _Batch, V: Tensor, S: Tensor) -> Tensor:
        """The leading vectors, from V near them or drawn at random; S are the exact values."""
        known = S[:, : self._followed_values].to(torch.float64)
        # Those behind the k-th enter the exponents only.
        tolerance = torch.full_like(known, 3 * self.tolerance)
        tolerance[:, : self.k] = self.tolerance
        rounding = known[:, :1] * (S.shape[-1] * torch.finfo(batch.kind.dtype).eps)
        for _ in range(_COLD_PRODUCTS):
            found = ritz(V, batch.products(V)[0])
            V = found.vectors
            off = (found.squares[:, : known.shape[-1]].sqrt() - known).abs()
            if not bool((off > torch.maximum(tolerance * known, rounding)).any()):
                break
        return V

    def _values(self, squares: Tensor, pending: Tensor) -> Tensor:
        """(B, s) singular values, with what the iteration still has to gain."""
        return squares.sqrt() * (1 + self._calibration.gain * pending)

    def _learn(self, anchor: _Anchor, batch: _Batch, S: Tensor, stats: SpectralStats) -> None:
        look = self._follow(anchor, batch)
        self._calibration.learn_gain(look.found.squares, look.found.pending, S)
        if look.followed is not None:
            exact = torch.stack([getattr(stats, name).reshape(-1) for name in EXPONENTS])
            lam = S.to(torch.float64).square()
            exact[EXPONENTS.index("alpha")] = fit_powerlaw(lam, xmin=anchor.xmin).alpha
            followed = look.followed
            exact = torch.where(followed.followable, exact, torch.nan)
            self._calibration.learn_exponents(followed.exponents, anchor.at, exact, followed.errors[0])

    def _follow(self, anchor: _Anchor, batch: _Batch) -> _Followed:
        """The product, more of them where the leading values need it; moves the anchor's vectors."""
        bulk = anchor.bulk
        probes = None if bulk is None else bulk.probes
        # The last vector is drawn anew: a direction that V does not contain at all would never be found.
        fresh = self._draw(batch, 1)[..., 0]
        limit = self.tolerance / 10 / self._calibration.gain_error
        repeat = Repeat(limit, self.k, _MOST_PRODUCTS)
        found = anchor.vectors.look(batch, fresh, probes, repeat)
        values = self._values(found.squares, found.pending)
        leading = values[:, : self._followed_values].square()
        followed = None
        if bulk is not None:
            followed = bulk.follow(found.energy, found.bulk[:, 0], found.bulk[:, 1], leading)
        return _Followed(found, values, followed)

    def _report(self, look: _Followed, anchor: _Anchor) -> TrackedStats:
        calibration, k = self._calibration, self.k
        values, pending = look.values[:, :k], look.found.pending[:, :k]
        sigma, energy = values[:, 0], look.found.energy
        # What is left is rounding, of the exact look's float32 as of the product's.
        rounding = sigma[:, None] * (2 * torch.finfo(torch.float32).eps)
        error = torch.hypot(values * pending * calibration.gain_error, rounding)
        unknown = torch.full_like(sigma, torch.nan)
        drift, late = unknown, None
        exponents = spreads = [unknown] * len(EXPONENTS)
        held: tuple[str, ...] = ()
        if look.followed is not None:
            followable, drift = look.followed.followable, look.followed.drift
            # Of a spectrum that is flat to within its drift V tells nothing.
            squares = look.found.squares
            flat = (squares[:, 0] - squares[:, -2] < drift * squares[:, 0]) & followable
            unseen = torch.where(flat, drift / 2, 0)[:, None] * values
            error = torch.hypot(error, unseen)

            expected, grown = look.followed.errors
            value, spread, hold = calibration.exponents(look.followed.exponents, anchor.at, expected)
            # An exact look does not help against what is there right after it.
            grown = torch.where(grown > 0, spread * grown / expected, grown)
            late = ~(grown <= self.alpha_tolerance * value.abs()).all(0)
            late = torch.where(followable, late, look.followed.jumped)
            value, spread = (torch.where(followable, x, torch.nan) for x in (value, spread))
            exponents, spreads = list(value), list(spread)
            held = tuple(name for name, one in zip(EXPONENTS, hold.tolist(), strict=True) if one)
        relative = 2 * error[:, 0] / sigma
        needs = ~(relative <= self.tolerance) & (energy != 0)
        stable_rank = energy / sigma.square()
        return TrackedStats(
            spectral_norm=sigma,
            spectral_norm_error=error[:, 0],
            frobenius_norm=energy.sqrt(),
            stable_rank=stable_rank,
            stable_rank_error=stable_rank * relative,
            leading=values,
            leading_error=error,
            alpha_hill=exponents[0],
            alpha_hill_error=spreads[0],
            alpha=exponents[1],
            alpha_error=spreads[1],
            alpha_ranksize=exponents[2],
            alpha_ranksize_error=spreads[2],
            xmin=anchor.xmin,
            drift=drift,
            needs_exact=needs if late is None else needs | late,
            held=held,
        )


@dataclass(eq=False)
class _Together:
    """The vectors of a tracker that multiplies all of them at every look."""

    all: Tensor

    def look(self, batch: _Batch, fresh: Tensor, probes: Probes | None, repeat: Repeat) -> Look:
        found = batch.look(self.all, fresh, probes, repeat)
        self.all = found.vectors
        return found


@dataclass(eq=False)
class _InTurn:
    """Those of one that multiplies the leaders, the guards whose turn it is, and the last vector.

    Half of the work of a look with all of them. What rises from the bulk meets every guard in its turn, which
    then is orthogonal to the leaders as they were: a look without probes needs no more.
    """

    now: Tensor  # as multiplied by the last look
    waiting: deque[Tensor]

    @classmethod
    def of(cls, V: Tensor) -> _InTurn:
        guards = V[..., _LEADERS : _LEADERS + _TURNS * _GUARDS_A_TURN].split(_GUARDS_A_TURN, -1)
        now = torch.cat([V[..., :_LEADERS], guards[-1], V[..., -1:]], -1)
        return cls(now, deque(turn.clone() for turn in guards[:-1]))

    @property
    def all(self) -> Tensor:
        leaders, done, last = self._parts
        return torch.cat([leaders, *self.waiting, done, last], -1)

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.now.split([_LEADERS, _GUARDS_A_TURN, 1], -1)

    def look(self, batch: _Batch, fresh: Tensor, probes: Probes | None, repeat: Repeat) -> Look:
        leaders, done, last = self._parts
        V = torch.cat([leaders, self.waiting.popleft(), last], -1)
        self.waiting.append(done.clone())
        found = batch.look(V, fresh, probes, repeat)
        self.now = found.vectors
        # The other values are some of those that follow: which, is not known.
        return found._replace(squares=found.squares[:, :_LEADERS], pending=found.pending[:, :_LEADERS])


@dataclass(frozen=True)
class _Kind:
    """Of a batch of matrices; the products are computed in that dtype."""

    count: int
    m: int
    n: int
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        return f"{self.count} matrices of {self.m} x {self.n} in {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True, eq=False)
class _Anchor:
    """What is kept of an exact look; the vectors go on with every look."""

    kind: _Kind
    vectors: _Together | _InTurn
    bulk: Bulk | None
    at: Tensor  # EXPONENTS (3, B)
    xmin: Tensor


@dataclass(frozen=True, eq=False)
class _Followed:
    found: Look
    values: Tensor
    followed: Followed | None


class _Batch:
    """Matrices as the products need them: one batch dimension; whole ones have more rows than columns."""

    def __init__(self, A: Matrices, products: Products, whole: bool) -> None:
        self._products = products
        self._matrices: Matrices
        if isinstance(A, Tensor):
            tall = A.detach().mT if whole and A.shape[-2] < A.shape[-1] else A.detach()
            self._matrices = tall.reshape(-1, *tall.shape[-2:])
            first = tall
        else:
            self._matrices = [a.detach().mT if whole and a.shape[0] < a.shape[1] else a.detach() for a in A]
            first = self._matrices[0]
        m, n = first.shape[-2:]
        self.kind = _Kind(len(self._matrices), m, n, _ops.compute_dtype(first.dtype), first.device)
        self._in_one_call = whole and first.device.type == "cpu"

    def look(self, V: Tensor, fresh: Tensor, probes: Probes | None, repeat: Repeat) -> Look:
        """spectral_fast.look.look with these products; on the CPU all of it in one call."""
        if not self._in_one_call:
            return look(self.products, V, fresh, probes, repeat)
        kept = (None, None, None) if probes is None else probes
        return Look(*_ops.tracked_look(list(self._matrices), V, fresh, *kept, *repeat))

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
