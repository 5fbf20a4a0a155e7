"""Two time scales: whether alpha settles more slowly than the stable rank.

The mean over the layers of each statistic is fitted by an exponential approach with autocorrelated noise,

    x(t) = a + b exp(-t / tau) + u(t),   corr(u(s), u(t)) = rho^(|t - s| / g),  g: median steps between looks,

by restricted maximum likelihood: b, a and the noise's variance in closed form, rho and tau on grids (variable
projection; Golub and Pereyra 1973). Plain maximum likelihood takes rho far too low when it is close to 1, and
then finds time scales in noise; the restricted one does not (Chen and Deo 2009). docs/lifecycle.md has the
formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from spectral_fast.lifecycle.series import RHO_MAX, Floats
from spectral_fast.lifecycle.trajectories import Trajectories

_LEVEL = 0.05
_FEWEST_LOOKS = 12
# Time constants from a quarter of the shortest way between two looks (a jump at the first look) to twenty
# runs (whose bend is 1/40 of their rise), neighbours by a factor of 1.2 to 1.3 before the grid is refined.
_SHORTEST, _LONGEST, _TAUS = 0.25, 20.0, 48
# Rho beyond where the restricted likelihood has fallen this far are left out, 0.005 for each series.
_LEFT_OUT = 0.01
# 1 / (samples + 1) + _LEFT_OUT is at most _LEVEL.
_FEWEST_SAMPLES = 24
_RHO_CUT = float(stats.chi2.isf(_LEFT_OUT, 1)) / 2
# The largest change of the log-likelihood from one tau of the grid to the next, within 4 of its top.
_COARSE = 0.4


@dataclass(frozen=True)
class Decay:
    """x(t) = limit + change exp(-(t - start) / tau), fitted to one series.

    Attributes:
        statistic: its name.
        tau: time constant in steps.
        interval: 95 % of it; from 0 where the whole change may lie before the second look, to inf where the
            series need not bend within the run.
        limit: a, where it goes.
        change: b, its distance from there at the first look.
        noise: standard deviation of the noise.
        rho: autocorrelation of the noise over the median gap between looks.
        explained: 1 - variance of the noise's realization / variance of the series. Small noise with rho
            close to 1 around a good fit means that the curve is no exponential.
    """

    statistic: str
    tau: float
    interval: tuple[float, float]
    limit: float
    change: float
    noise: float
    rho: float
    explained: float

    @property
    def identified(self) -> bool:
        """Whether the interval of tau has two ends."""
        return self.interval[0] > 0 and np.isfinite(self.interval[1])


@dataclass(frozen=True)
class Timescales:
    """What :func:`measure_timescales` found.

    Attributes:
        steps: of the looks that were fitted.
        fast_series, slow_series: means over the layers at these steps.
        fast, slow: their fits, each with its own time constant.
        shared_tau: the time constant of the model that has one for both, in steps.
        likelihood_ratio: 2 (restricted log-likelihood of two time constants - of one).
        p_value: that of one time constant, against two; parametric bootstrap.
        delta_aicc, delta_bic: criterion of one time constant - of two, from the unrestricted likelihood;
            positive speaks for two. They take no account of how noisy they are: see docs/lifecycle.md.
        detected: p_value <= 0.05, both time constants are identified, and the fast one is the smaller.
        reason: why not, or "".
    """

    steps: list[int]
    fast_series: list[float]
    slow_series: list[float]
    fast: Decay
    slow: Decay
    shared_tau: float
    likelihood_ratio: float
    p_value: float
    delta_aicc: float
    delta_bic: float
    detected: bool
    reason: str


def measure_timescales(
    run: Trajectories, fast: str = "stable_rank", slow: str = "alpha", *, samples: int = 999
) -> Timescales:
    """Time constants of two statistics of a run, and whether they are two.

    Intervals are profile likelihoods cut where 95 % of simulated series from the fitted model have their
    true tau; the p-value is the share of simulated pairs of series with one time constant that have as large
    a likelihood ratio. Both simulate at the most plausible rho and at the largest plausible one (restricted
    likelihood ratio, level 0.005) and take the less favourable, and 0.01 is added to the p-value for what was
    left out (Berger and Boos 1994). The noises of the two series are drawn with the correlation they have.

    Args:
        run: its looks.
        fast, slow: names of the statistics; "fast" is the one expected to settle first.
        samples: simulated pairs of series for each of the four bootstraps. The random numbers are the same
            in every call.

    Raises:
        ValueError: fewer than 12 looks with both statistics, a statistic that is missing or constant, or
            fewer than 24 samples.
    """
    if samples < _FEWEST_SAMPLES:
        raise ValueError(
            f"measure_timescales: {samples} samples give no p-value of {_LEVEL}; {_FEWEST_SAMPLES} are least"
        )
    (fast_steps, fast_values), (slow_steps, slow_values) = run.complete(fast), run.complete(slow)
    common, of_fast, of_slow = np.intersect1d(fast_steps, slow_steps, return_indices=True)
    if len(common) < _FEWEST_LOOKS:
        raise ValueError(
            f"measure_timescales: {len(common)} looks have {fast} and {slow} of every layer; "
            f"{_FEWEST_LOOKS} are the least"
        )
    steps = common.astype(np.float64)
    means = np.stack([fast_values[of_fast].mean(axis=1), slow_values[of_slow].mean(axis=1)], axis=1)
    for name, series in zip((fast, slow), means.T, strict=True):
        if np.ptp(series) == 0:
            raise ValueError(f"measure_timescales: {name} is the same at every look; it has no time constant")
    pair = (means - means.mean(axis=0)) / means.std(axis=0)
    grid = _refined_grid(steps, pair)
    surfaces = grid.likelihood(pair)
    profiles = _over_rho(surfaces)
    ratio = float(_ratio(profiles[:, None])[0])
    apart, together = profiles.argmax(axis=1), int(profiles.sum(axis=0).argmax())

    nulls, truths = [], []
    for rho_of in (_likeliest, _largest_plausible):
        nulls.append(
            [_Truth.of(grid, pair[:, i], together, rho_of(surfaces[:, i, together])) for i in (0, 1)]
        )
        truths.append(
            [_Truth.of(grid, pair[:, i], k, rho_of(surfaces[:, i, k])) for i, k in enumerate(apart)]
        )
    drawn = _profiles_of_simulated(grid, [*nulls, *truths], samples)
    larger = np.count_nonzero([_ratio(profile) >= ratio for profile in drawn[:2]], axis=1)
    p_value = min(1.0, (1 + int(larger.max())) / (samples + 1) + _LEFT_OUT)
    below = [
        [profile[i].max(axis=1) - profile[i, :, k] for i, k in enumerate(apart)] for profile in drawn[2:]
    ]
    # The definition of the quantile that has 95 % of further values below it, also with few samples.
    cuts = np.quantile(below, 1 - _LEVEL, axis=2, method="weibull").max(axis=0)

    decays = [
        _decay(name, grid, means[:, i], profiles[i], float(cuts[i]), _likeliest(surfaces[:, i, apart[i]]))
        for i, name in enumerate((fast, slow))
    ]
    delta_aicc, delta_bic = _criteria(_over_rho(grid.likelihood(pair, restricted=False)), len(steps))
    reason = _why_not(decays[0], decays[1], p_value)
    return Timescales(
        steps=common.tolist(),
        fast_series=means[:, 0].tolist(),
        slow_series=means[:, 1].tolist(),
        fast=decays[0],
        slow=decays[1],
        shared_tau=float(grid.taus[together]),
        likelihood_ratio=ratio,
        p_value=p_value,
        delta_aicc=delta_aicc,
        delta_bic=delta_bic,
        detected=not reason,
        reason=reason,
    )


class _Grid:
    """The decays exp(-t / tau) of a grid of tau, whitened for each of a grid of rho.

    Attributes:
        taus: (K,) in steps.
        rhos: (P,) correlations over the shortest gap, evenly spaced in artanh rho.
        median_gap: the median gap over the shortest.
        correlations: (P, T - 1) those of consecutive looks.
    """

    def __init__(self, steps: Floats, taus: Floats) -> None:
        looks = len(steps)
        self.steps, self.taus = steps, taus
        gaps = np.diff(steps)
        # Over the shortest gap, so that the likelihood is smooth in rho down to 0; up to RHO_MAX over the
        # median gap, or a memory of half the run where that is longer: smooth curves of many looks have it.
        self.median_gap = float(np.median(gaps) / gaps.min())
        end = np.arctanh(max(RHO_MAX ** (1 / self.median_gap), 1 - 2 * gaps.min() / (steps[-1] - steps[0])))
        # The likelihood is 1 / sqrt(looks) wide; three points this far apart still give its top.
        self.rhos = np.tanh(np.linspace(0, end, 1 + int(np.ceil(end / min(0.15, 3 / np.sqrt(looks))))))
        self.correlations = self.rhos[:, None] ** (gaps / gaps.min())
        decays = self.decays(np.arange(len(taus)))
        decays -= decays.mean(axis=0)
        self._bases = []
        for correlation in self.correlations:
            ones = _whitened(np.ones((looks, 1)), correlation)
            slopes = _whitened(decays, correlation)
            ones_norm = np.linalg.norm(ones)
            ones /= ones_norm
            slopes -= ones @ (ones.T @ slopes)
            norms = np.linalg.norm(slopes, axis=0)
            determinant = -np.log1p(-(correlation**2)).sum() / 2
            # -ln det(X' V^-1 X) / 2 relative to that of white noise, so that no choice of units of the
            # columns of X = [1, decay] tells one tau from another.
            information = np.log(ones_norm / np.sqrt(looks)) + np.log(norms / np.linalg.norm(decays, axis=0))
            self._bases.append((ones, slopes / norms, determinant, information))

    def decays(self, index: NDArray[np.int64]) -> Floats:
        """(T, len(index)) of the time constants of these indices."""
        return np.exp(-(self.steps - self.steps[0])[:, None] / self.taus[index])

    def likelihood(self, series: Floats, *, restricted: bool = True) -> Floats:
        """(P, R, K) log-likelihood of each of (T, R) series, the best level, change and variance put in."""
        looks = len(series)
        degrees = looks - 2 if restricted else looks
        surface = np.empty((len(self.rhos), series.shape[1], len(self.taus)))
        # One pass and no copies: the bootstraps spend their time here.
        for values, correlation, basis in zip(surface, self.correlations, self._bases, strict=True):
            ones, slopes, determinant, information = basis
            white = _whitened(series, correlation)
            white -= ones @ (ones.T @ white)
            total = np.einsum("tr,tr->r", white, white)[:, None]
            np.matmul(white.T, slopes, out=values)
            np.square(values, out=values)
            np.subtract(total, values, out=values)
            np.maximum(values, np.finfo(np.float64).eps * total, out=values)  # an exact fit
            np.log(values, out=values)
            values *= -degrees / 2
            values += determinant - information if restricted else determinant
        return surface


def _whitened(series: Floats, correlation: Floats) -> Floats:
    """Independent innovations of (T, ...) autoregressive series, all with the variance of the series."""
    previous = correlation.reshape(-1, *[1] * (series.ndim - 1))
    white = np.empty_like(series)
    white[0] = series[0]
    white[1:] = (series[1:] - previous * series[:-1]) / np.sqrt(1 - previous**2)
    return white


def _refined_grid(steps: Floats, pair: Floats) -> _Grid:
    """A grid of tau fine enough for the likelihood of each of two series and for their sum."""
    ends = _SHORTEST * np.diff(steps).min(), _LONGEST * (steps[-1] - steps[0])
    taus = np.geomspace(*ends, _TAUS)
    grid = _Grid(steps, taus)
    profiles = _over_rho(grid.likelihood(pair))
    while True:
        between = np.zeros(len(taus) - 1, dtype=bool)
        for curve in (profiles[0], profiles[1], profiles.sum(axis=0)):
            below = curve.max() - curve
            coarse = (np.minimum(below[1:], below[:-1]) < 4) & (np.abs(np.diff(below)) > _COARSE)
            # Beside a coarse step may be the peak, as high at one end as at the other.
            between |= coarse
            between[1:] |= coarse[:-1]
            between[:-1] |= coarse[1:]
        # Two time constants that agree to nine digits: the fit is exact to rounding.
        between &= np.diff(np.log(taus)) > 1e-9
        if not between.any():
            return grid if len(grid.taus) == len(taus) else _Grid(steps, taus)
        added = np.sqrt(taus[:-1] * taus[1:])[between]
        new = _over_rho(_Grid(steps, added).likelihood(pair))
        order = np.argsort(np.concatenate([taus, added]))
        taus = np.concatenate([taus, added])[order]
        profiles = np.concatenate([profiles, new], axis=1)[:, order]


def _over_rho(surface: Floats) -> Floats:
    """(P, R, K) -> (R, K): the maximum over rho, by a parabola through the three largest neighbours."""
    peak = np.clip(surface.argmax(axis=0), 1, len(surface) - 2)[None]
    left, top, right = (np.take_along_axis(surface, peak + shift, axis=0)[0] for shift in (-1, 0, 1))
    bend, slope = 2 * top - left - right, (right - left) / 2
    peaked = bend > 0
    shift = np.clip(slope / np.where(peaked, bend, 1.0), -1, 1)
    return np.where(peaked, top + slope * shift - bend * shift**2 / 2, np.maximum(left, right))


def _ratio(profiles: Floats) -> Floats:
    """(2, R, K) -> (R,) likelihood ratio of two time constants against one."""
    apart = profiles.max(axis=2).sum(axis=0)
    return np.asarray(2 * (apart - profiles.sum(axis=0).max(axis=1)))


def _likeliest(curve: Floats) -> int:
    """Index of the most plausible rho of a (P,) log-likelihood."""
    return int(curve.argmax())


def _largest_plausible(curve: Floats) -> int:
    return int(np.flatnonzero(curve >= curve.max() - _RHO_CUT)[-1])


@dataclass(frozen=True, eq=False)
class _Truth:
    """A fitted series to simulate from: its (T,) curve, noise, and the (T,) innovations that it left."""

    curve: Floats
    level: float
    change: float
    noise: float
    correlation: Floats
    innovations: Floats

    @classmethod
    def of(cls, grid: _Grid, series: Floats, tau: int, rho: int) -> _Truth:
        """Generalized least squares for the time constant and the rho of these indices."""
        correlation = grid.correlations[rho]
        columns = np.column_stack([np.ones(len(series)), grid.decays(np.array([tau]))])
        white = _whitened(columns, correlation)
        coefficients = np.linalg.lstsq(white, _whitened(series, correlation), rcond=None)[0]
        curve = columns @ coefficients
        innovations = _whitened(series - curve, correlation)
        noise = float(np.sqrt(innovations @ innovations / (len(series) - 2)))
        return cls(curve, float(coefficients[0]), float(coefficients[1]), noise, correlation, innovations)


def _simulated(rng: np.random.Generator, pair: list[_Truth], samples: int) -> Floats:
    """(T, 2, samples) series of two truths, their innovations as correlated as those that were left."""
    cross = float(np.corrcoef(pair[0].innovations, pair[1].innovations)[0, 1])
    drawn = rng.standard_normal((len(pair[0].curve), 2, samples))
    drawn[:, 1] = cross * drawn[:, 0] + np.sqrt(max(0.0, 1 - cross**2)) * drawn[:, 1]
    previous = np.stack([truth.correlation for truth in pair], axis=1)[..., None]
    drawn[1:] *= np.sqrt(1 - previous**2)
    for look, kept in enumerate(previous, start=1):
        drawn[look] += kept * drawn[look - 1]
    drawn *= np.array([[truth.noise] for truth in pair])
    drawn += np.stack([truth.curve for truth in pair], axis=1)[..., None]
    return drawn


def _profiles_of_simulated(grid: _Grid, pairs: list[list[_Truth]], samples: int) -> Floats:
    """(pairs, 2, samples, K) profile likelihoods of series simulated from each pair of truths."""
    rng = np.random.default_rng(0)
    drawn = np.stack([_simulated(rng, pair, samples) for pair in pairs], axis=1)
    profiles = _over_rho(grid.likelihood(drawn.reshape(len(drawn), -1)))
    return profiles.reshape(len(pairs), 2, samples, -1)


def _decay(statistic: str, grid: _Grid, series: Floats, profile: Floats, cut: float, rho: int) -> Decay:
    """The fit of one series in its own units, with the interval where its profile is within the cut."""
    top = int(profile.argmax())
    low, high = _interval(np.log(grid.taus), profile, cut)
    truth = _Truth.of(grid, series, top, rho)
    return Decay(
        statistic=statistic,
        tau=float(grid.taus[top]),
        interval=(float(np.exp(low)), float(np.exp(high))),
        limit=truth.level,
        change=truth.change,
        noise=truth.noise,
        rho=float(grid.rhos[rho] ** grid.median_gap),
        explained=float(1 - np.var(series - truth.curve) / np.var(series)),
    )


def _interval(places: Floats, profile: Floats, cut: float) -> tuple[float, float]:
    """Where the profile crosses its maximum - cut for the first and the last time; infinite past an end."""
    inside = np.flatnonzero(profile >= profile.max() - cut)
    first, last = int(inside[0]), int(inside[-1])
    height = profile.max() - cut
    low, high = -np.inf, np.inf
    if first > 0:
        low = np.interp(height, profile[[first - 1, first]], places[[first - 1, first]])
    if last < len(places) - 1:
        high = np.interp(height, profile[[last + 1, last]], places[[last + 1, last]])
    return float(low), float(high)


def _criteria(profiles: Floats, looks: int) -> tuple[float, float]:
    """AICc and BIC of one time constant less those of two, from (2, K) unrestricted profiles."""
    values = 2 * looks
    ratio = float(_ratio(profiles[:, None])[0])

    def corrected(parameters: int) -> float:
        return 2 * parameters * values / (values - parameters - 1)

    # For each series level, change, variance and rho; and the time constants.
    return ratio + corrected(9) - corrected(10), ratio - float(np.log(values))


def _why_not(fast: Decay, slow: Decay, p_value: float) -> str:
    for decay in (fast, slow):
        low, high = decay.interval
        if low == 0 and not np.isfinite(high):
            return f"{decay.statistic} has no trend that its noise could not have made"
        if not np.isfinite(high):
            return (
                f"{decay.statistic} need not bend within the run: its time constant is above {low:.4g} "
                "steps, and nothing bounds it from above"
            )
        if low == 0:
            return (
                f"{decay.statistic} may have changed before the second look: its time constant is below "
                f"{high:.4g} steps; look more often"
            )
    if p_value > _LEVEL:
        return f"one time constant for both would leave as much (p = {p_value:.2g})"
    if fast.tau >= slow.tau:
        return f"{fast.statistic} is the slower one"
    return ""
