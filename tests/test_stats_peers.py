"""The statistics against the code of the tools that defined them: weightwatcher and powerlaw.

Where the definitions agree the values have to agree to 1e-10: both sides work in float64, and a
mean of N logs of size L makes a relative error of at most (alpha - 1) (N + 8) eps L in alpha - 1,
below 1e-11 for every spectrum here. Where the definitions differ the difference itself is tested,
so that a change on either side shows.
"""

from __future__ import annotations

import contextlib
import io
import math
import types
import warnings

import numpy as np
import pytest
import torch
from scipy import integrate

from spectral_fast import fit_powerlaw, hill_alpha, stats_from_svdvals
from tests.oracles import stats_oracle as oracle

RTOL = 1e-10
REGULAR = oracle.regular()
DEGENERATE = oracle.degenerate()
MINILM = oracle.minilm()
SPECTRA = REGULAR | MINILM


@pytest.fixture(scope="module")
def ww():
    """weightwatcher; importing it prints, and silences all warnings of the process."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        pytest.importorskip("powerlaw")
        return pytest.importorskip("weightwatcher")


@pytest.fixture
def ww_fit(ww):
    from weightwatcher.WW_powerlaw import WWFit

    def fit(lam, **kwargs):
        with contextlib.redirect_stdout(io.StringIO()):  # "SMALL N PL FIT"
            return WWFit(lam, **kwargs)

    return fit


@pytest.fixture
def powerlaw_fit():
    powerlaw = pytest.importorskip("powerlaw")

    def fit(lam, alpha_max=None, **kwargs):
        if alpha_max is not None:
            kwargs["parameter_ranges"] = {"alpha": [1.0, alpha_max]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return powerlaw.Fit(lam, verbose=0, **kwargs)

    return fit


def ours(lam, **kwargs):
    fit = fit_powerlaw(torch.from_numpy(np.ascontiguousarray(lam)), **kwargs)
    return oracle.Fit(*(getattr(fit, name).item() for name in oracle.Fit._fields))


def close(got, expected, rtol=RTOL):
    assert got == pytest.approx(expected, rel=rtol, abs=0)


def same_fit(got: oracle.Fit, expected: oracle.Fit, rtol=RTOL):
    for name in oracle.Fit._fields:
        assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=rtol, abs=0), name


def right_answers(lam, *xmins):
    """The fits that are right for lam (several only where D ties); each xmin must be one's."""
    allowed = {fit.xmin for fit in oracle.fits(lam)}
    for xmin in xmins:
        assert xmin in allowed
    return allowed


# ----------------------------------------------------------- weightwatcher: alpha


@pytest.mark.parametrize("name", SPECTRA)
def test_fit_is_wwfit(name, ww_fit):
    lam = SPECTRA[name] ** 2
    peer, got = ww_fit(lam), ours(lam)
    right_answers(lam, got.xmin, peer.xmin)
    if got.xmin == peer.xmin:
        expected = oracle.Fit(peer.alpha, peer.sigma, peer.xmin, peer.D, len(peer.data))
        same_fit(got, expected)
    else:
        assert got.ks_distance == pytest.approx(peer.D, abs=2 * oracle.TIE)


@pytest.mark.parametrize("name", ["exact_1.0", *MINILM])
def test_weightwatcher_drops_values_up_to_1e_5(name, ww):
    """WeightWatcher.fit_powerlaw fits evals > 1e-5; we have no absolute cut-off."""
    lam = np.sort(SPECTRA[name] ** 2)
    lam = lam * (1e-5 / lam[len(lam) // 4])  # a quarter of the values below the cut
    kept = lam[lam > 1e-5]
    assert 20 <= len(kept) < len(lam)
    alpha, _, xmin, _, D, sigma, spikes, *_, status, _ = ww.WeightWatcher.fit_powerlaw(None, lam, plot=False)
    assert status == "success"
    got = ours(kept)
    right_answers(kept, xmin, got.xmin)
    same_fit(got, oracle.Fit(alpha, sigma, xmin, D, spikes))
    whole = ours(lam)
    right_answers(lam, whole.xmin)
    if name == "exact_1.0":  # here the dropped values belong to the power law
        assert whole.xmin == lam[0] < 1e-5 < xmin


def test_wwfit_changes_estimator_below_20_values(ww_fit):
    """WWFit takes 1 + (m - 1)/sum there, tails of 8 or more, and D - 0.868/sqrt(m) for the choice.

    Ours is the same estimator for every N.
    """
    lam = np.sort(REGULAR["pareto_20"] ** 2)
    same_fit(ours(lam), oracle.fits(lam)[0])
    lam = lam[1:]
    peer, got = ww_fit(lam), ours(lam)
    same_fit(got, oracle.fits(lam)[0])
    tail = lam[lam >= peer.xmin]
    assert len(tail) >= 8
    close(peer.alpha, 1 + (len(tail) - 1) / np.log(tail / peer.xmin).sum())
    assert abs(peer.alpha - got.alpha) > 0.01 * got.alpha


def test_wwfit_cuts_a_run_of_equal_values(ww_fit):
    """WWFit starts tails inside a run of equal values (by position); ours is all lam >= xmin.

    D is often less where only some copies of xmin are in the tail, so with repeats it drops some.
    """
    lam = np.sort(DEGENERATE["rounded"] ** 2)
    peer, got = ww_fit(lam), ours(lam)
    same_fit(got, oracle.fits(lam)[0])
    first, last = np.flatnonzero(lam == peer.xmin)[[0, -1]]
    assert last == first + 4
    tail = lam[last:]  # one copy of five
    close(peer.alpha, 1 + len(tail) / np.log(tail / peer.xmin).sum())
    close(peer.sigma, (peer.alpha - 1) / math.sqrt(len(tail)))
    assert len(peer.data) == len(tail) + 4  # what it reports as the tail is not what it fitted
    assert abs(got.alpha - peer.alpha) > 0.1


def test_wwfit_takes_xmin_as_a_lower_bound(ww_fit, powerlaw_fit):
    """WWFit(xmin=x) still searches, from the value nearest to x; ours and powerlaw.Fit fix it."""
    lam = np.sort(REGULAR["lognormal"] ** 2)
    xmin = float(lam[40])
    got = ours(lam, xmin=xmin)
    same_fit(got, oracle.fit_at(lam, xmin))
    assert ww_fit(lam, xmin=xmin).xmin == ww_fit(lam).xmin > xmin
    between = float(lam[100] + lam[101]) / 2  # in (1.5, 3], where powerlaw.Fit has a closed form
    got = ours(lam, xmin=between)
    peer = powerlaw_fit(lam, xmin=between).power_law
    assert 1.5 < peer.alpha <= 3
    expected = oracle.Fit(peer.alpha, peer.standard_err, between, peer.D, peer.n)
    same_fit(got, expected)


# ----------------------------------------------------------------- powerlaw: alpha

# powerlaw.Fit has the closed form for 1.5 < alpha <= 3 only and runs Nelder-Mead (tol 1e-4) from it
# elsewhere; it can move a flat minimum by about sqrt(eps) relative, and the least D with it. So
# 1e-10 in the range of the closed form and 1e-6 outside.
CLOSED_FORM = ["pareto_2.5", "pareto_20", "exact_0.3", "exact_0.6", "lognormal", "exponential"]
NUMERICAL = ["pareto_4.0", "gauss_128x80"]


@pytest.mark.parametrize("name", CLOSED_FORM + NUMERICAL)
def test_fit_is_powerlaw_fit(name, powerlaw_fit):
    lam = REGULAR[name] ** 2
    peer, got = powerlaw_fit(lam, alpha_max=1e4), ours(lam)
    rtol = RTOL if 1.5 < peer.alpha <= 3 else 1e-6
    assert (rtol == RTOL) == (name in CLOSED_FORM)
    right_answers(lam, got.xmin, peer.xmin)
    assert got.xmin == peer.xmin
    same_fit(got, oracle.Fit(peer.alpha, peer.sigma, peer.xmin, peer.D, int(peer.n_tail)), rtol)


@pytest.mark.parametrize("name", NUMERICAL)
def test_powerlaw_clips_alpha_at_3(name, powerlaw_fit):
    lam = REGULAR[name] ** 2
    assert powerlaw_fit(lam).alpha <= 3 < 4 < ours(lam).alpha


def test_powerlaw_leaves_out_two_candidates(powerlaw_fit):
    """powerlaw 2.0 leaves out the two largest values as xmin, weightwatcher and ours the largest.

    A tail of two has D = 1/2 - exp(-2) whatever the values, so this shows only in a bad fit.
    """
    lam = np.array([1.0] * 10 + [2.0] * 10 + [5.0, 6.0])
    got, peer = ours(lam), powerlaw_fit(lam, alpha_max=1e4)
    same_fit(got, oracle.fits(lam)[0])
    assert (got.xmin, got.n_tail) == (5.0, 2)
    assert got.ks_distance == pytest.approx(0.5 - math.exp(-2), rel=1e-13)
    assert peer.xmin_fitting_results["xmins"].tolist() == [1.0, 2.0]


def test_powerlaw_sees_the_first_of_equal_values_only(powerlaw_fit):
    """powerlaw takes F(x) - (values below x)/m, so a run of equal values counts once, at its start.

    With alpha the same at the same xmin, its D can only be smaller than ours.
    """
    lam = np.sort(DEGENERATE["rounded"] ** 2)
    smaller = 0
    for xmin in np.unique(lam)[:-2]:
        got = ours(lam, xmin=float(xmin))
        peer = powerlaw_fit(lam, alpha_max=1e4, xmin=float(xmin)).power_law
        close(got.alpha, peer.alpha, 1e-6)  # 1e-6: see NUMERICAL above
        tail = lam[lam >= xmin]
        below = np.searchsorted(tail, tail) / len(tail)
        model = 1 - (tail / xmin) ** (1 - peer.alpha)
        close(peer.D, np.abs(model - below).max(), 1e-10)
        assert got.ks_distance >= peer.D * (1 - 1e-6)
        smaller += bool(got.ks_distance > 1.01 * peer.D)
    assert smaller >= 5


# ---------------------------------------------------------------------------- Hill


def tempbalance_hill(eigs: np.ndarray) -> float:
    """TempBalance's and AlphaPruning's estimate (xmin_pos = 2), as their source spells it."""
    nz_eigs = np.sort(eigs)
    log_nz_eigs = np.log(nz_eigs)
    N = len(nz_eigs)
    i = int(len(nz_eigs) / 2)
    n = float(N - i)
    return 1 + n / (np.sum(log_nz_eigs[i:]) - n * log_nz_eigs[i])


@pytest.mark.parametrize("name", SPECTRA)
def test_hill_is_tempbalances(name):
    s = torch.from_numpy(SPECTRA[name])
    expected = tempbalance_hill(SPECTRA[name] ** 2)
    close(hill_alpha(s**2).item(), expected)
    close(stats_from_svdvals(s).alpha_hill.item(), expected)


# ---------------------------------------------------------- weightwatcher: the others


@pytest.fixture(params=SPECTRA)
def norms(request, ww):
    """(singular values, our statistics, weightwatcher's columns for our alpha)."""
    s = SPECTRA[request.param]
    got = stats_from_svdvals(torch.from_numpy(s))
    columns = {}
    layer = types.SimpleNamespace(
        layer_id=0, plot_id="0", name="", evals=s**2, N=len(s), alpha=got.alpha.item()
    )
    layer.add_column = columns.__setitem__
    ww.WeightWatcher.apply_norm_metrics(None, layer)
    return s, got, {str(getattr(key, "value", key)): value for key, value in columns.items()}


def test_norms_are_weightwatchers(norms):
    _, got, columns = norms
    close(got.spectral_norm.item() ** 2, columns["spectral_norm"])  # theirs is sigma_1 squared
    close(got.frobenius_norm.item() ** 2, columns["norm"])
    # A log10 near 0 keeps the absolute error of its argument, so absolute here.
    for name, theirs in [
        ("log_norm", "log_norm"),
        ("alpha_weighted", "alpha_weighted"),
        ("log_alpha_norm", "log_alpha_norm"),
    ]:
        assert getattr(got, name).item() == pytest.approx(columns[theirs], rel=RTOL, abs=RTOL), name
    close(got.stable_rank.item(), columns["stable_rank"])


def test_entropy_is_weightwatchers_but_for_its_epsilon(norms):
    """Theirs: p + 1e-10 for p, and ln(rank + 1e-10); ours is the limit of a vanishing epsilon.

    -(p + e) ln(p + e) = -p ln p - e (1 + ln p) + O(e^2 / p); ln(r + e) = ln r + e/r. With both
    corrections what is left is sum of e^2/(2p), a rounding of r terms, and the next order.
    """
    s, got, columns = norms
    r, e = len(s), 1e-10
    p = s**2 / (s**2).sum()
    h = got.spectral_entropy.item() * math.log(r)
    corrected = (h - e * (1 + np.log(p)).sum()) / (math.log(r) + e / r)
    left = (e**2 / p).sum() + 4 * r * oracle.EPS * (h + 1)
    assert columns["entropy"] == pytest.approx(corrected, rel=0, abs=left)
    assert left < 1e-9


def test_entropy_of_a_singular_matrix(ww):
    """weightwatcher divides by the log of the numerical rank, we by that of min(m, n)."""
    from weightwatcher.RMT_Util import matrix_entropy

    s = DEGENERATE["half_zeros"]
    got = stats_from_svdvals(torch.from_numpy(s)).spectral_entropy.item()
    peer = matrix_entropy(s, len(s))
    assert got * math.log(96) / math.log(48) == pytest.approx(peer, rel=1e-6)  # its epsilon


def test_weightwatchers_participation_ratio_is_another(ww):
    """Theirs is |v|_2 / |v|_4 of an eigenvector's entries; to the fourth, with v = sigma, ours."""
    from weightwatcher.RMT_Util import participation_ratio

    s = REGULAR["lognormal"]
    got = stats_from_svdvals(torch.from_numpy(s)).participation_ratio.item()
    close(got, participation_ratio(s) ** 4)


# ----------------------------------------------------------------- Marchenko-Pastur


@pytest.mark.parametrize(("m", "n"), [(128, 80), (80, 128), (80, 80), (80, 1000)])
def test_bulk_edge_is_weightwatchers_formula(m, n, ww):
    """lambda_+ = (sigma (1 + sqrt(1/Q)))^2 on both sides, and the same density below it.

    The variance is not: weightwatcher fits sigma to a kernel density estimate, we match the median.
    Here: their density holds half its mass below our median, so our variance is right for it.
    """
    from weightwatcher.RMT_Util import calc_lambda_plus, marchenko_pastur_fun

    g = np.random.default_rng(11)
    s = np.linalg.svd(g.standard_normal((m, n)), compute_uv=False)
    got = stats_from_svdvals(torch.from_numpy(s), shape=(m, n))
    q, big = max(m, n) / min(m, n), max(m, n)
    edge = got.mp_edge.item() / big
    sigma = math.sqrt(edge / calc_lambda_plus(q, 1.0))
    close(edge, calc_lambda_plus(q, sigma))

    # x = c - w cos t takes away the square roots at the edges; quad is then good to its 1e-12.
    lo, hi = (1 - q**-0.5) ** 2 * sigma**2, edge
    c, w = (hi + lo) / 2, (hi - lo) / 2

    def mass(t):
        return float(marchenko_pastur_fun(c - w * math.cos(t), q, sigma)[1]) * w * math.sin(t)

    median = float(np.median(s**2)) / big
    t = math.acos((c - median) / w)
    below, _ = integrate.quad(mass, 1e-9, t, epsabs=1e-12, epsrel=1e-12, limit=200)
    whole, _ = integrate.quad(mass, 1e-9, math.pi, epsabs=1e-12, epsrel=1e-12, limit=200)
    # mass() is bounded by 1, so the 1e-9 left out at 0 (0/0 there when q = 1) costs at most 1e-9.
    assert whole == pytest.approx(1, abs=3e-9)
    assert below == pytest.approx(0.5, abs=3e-9)
    assert sigma == pytest.approx(1, abs=0.05)  # standard normal entries; a 5 % check of meaning
