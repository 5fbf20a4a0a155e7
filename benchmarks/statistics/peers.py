"""The peers that fit power laws: how they are called, and whether their answer is the right one."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.statistics.gate import ALPHA_TOLERANCE, Scan, fit_error, ks_tolerance
from tests.oracles.stats_oracle import TIE, Fit

Call = Callable[[NDArray[np.float64]], Any]

# powerlaw has the closed form in this range of alpha; elsewhere Nelder-Mead improves on it until the simplex
# is this small.
CLOSED_FORM = (1.5, 3.0)
SIMPLEX = 1e-4


@dataclass(frozen=True)
class Peer:
    """A function of one spectrum.

    Attributes:
        name: in tables; distribution: what pip installs.
        load: the call; raises ImportError.
        judge: of an answer, the scan and our xmin, what is wrong with it ("" for nothing) and what to note.
        required: whether the gate of ours demands its answer.
        repeats: None chooses by the time they take.
        worst, median: the targets of time over ours.
    """

    name: str
    distribution: str
    load: Callable[[], Call]
    judge: Callable[[Any, Scan, float], tuple[str, str]]
    required: bool
    repeats: int | None
    worst: float
    median: float | None


def load_wwfit() -> Call:
    with _quietly():
        from weightwatcher.WW_powerlaw import WWFit
    call: Call = WWFit
    return call


def load_powerlaw() -> Call:
    with _quietly():
        import powerlaw

    def fit(evals: NDArray[np.float64]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return powerlaw.Fit(evals, parameter_ranges={"alpha": [1.0, 1e4]}, verbose=0)

    return fit


@contextlib.contextmanager
def _quietly() -> Any:
    """Importing weightwatcher prints, and silences the warnings of the whole process."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


@dataclass(frozen=True)
class RustFit:
    """powerlawrs' answer beside what it was asked about. alpha: of the density, one more than it reports."""

    xmin: float
    alpha: float
    D: float
    x: NDArray[np.float64]


def load_powerlawrs() -> Call:
    import powerlawrs

    def fit(evals: NDArray[np.float64]) -> RustFit:
        found = powerlawrs.fit(evals.tolist()).ParetoFit
        return RustFit(found.x_min, found.alpha + 1, found.D, evals)

    return fit


def judge_wwfit(answer: Any, scan: Scan, our_xmin: float) -> tuple[str, str]:
    """WWFit's xmin is ours or one whose D ties with it, by WWFit's own D; the rest as for ours."""
    if answer.xmin != our_xmin:
        ours = np.flatnonzero(answer.xmins == our_xmin)
        if len(ours) != 1 or abs(answer.Ds[ours[0]] - answer.D) > TIE:
            return f"its xmin is {answer.xmin:.17g}, ours {our_xmin:.17g}", ""
    at = scan.index(float(answer.xmin))
    if at is None:
        return f"its xmin {answer.xmin:.17g} is none of the values", ""
    got = Fit(float(answer.alpha), float(answer.sigma), float(answer.xmin), float(answer.D), len(answer.data))
    error = fit_error(got, scan.fit(at))
    return error, "" if answer.xmin == our_xmin else "another xmin of equal D"


def judge_powerlaw(answer: Any, scan: Scan, our_xmin: float) -> tuple[str, str]:
    """powerlaw's xmin is ours, or one that is as good within the precision of its optimizer."""
    at, ours = scan.index(float(answer.xmin)), scan.index(our_xmin)
    if at is None or ours is None:
        return f"its xmin {answer.xmin:.17g} is none of the values", ""
    allowed = powerlaw_tolerance(scan, at)
    apart = abs(float(answer.D - scan.distance[at]))
    if apart > allowed:
        return f"its D is off by {apart:.1e} at xmin {answer.xmin:.17g}, more than its {allowed:.1e}", ""
    # D of either xmin may be off by its tolerance.
    if at != ours and scan.distance[at] - scan.distance[ours] > allowed + powerlaw_tolerance(scan, ours):
        return f"its xmin is {answer.xmin:.17g}, ours {our_xmin:.17g} of less D", ""
    note = "" if apart <= ks_tolerance(answer.D) else f"its D is off by {apart:.0e}"
    return "", note if at == ours else "another xmin within its precision"


def powerlaw_tolerance(scan: Scan, index: int) -> float:
    """How far D of powerlaw may be off: alpha by SIMPLEX, and |dD/d alpha| <= 0.37 / (alpha - 1)."""
    alpha = float(scan.alpha[index])
    exact = ks_tolerance(float(scan.distance[index]))
    if CLOSED_FORM[0] < alpha <= CLOSED_FORM[1]:
        return exact
    return exact + 0.37 * SIMPLEX / (alpha - 1)


def judge_powerlawrs(answer: RustFit, scan: Scan, our_xmin: float) -> tuple[str, str]:
    """powerlawrs takes the two-sided D: right is what that definition says, with an xmin of its own."""
    at = scan.index(answer.xmin)
    if at is None:
        return f"its xmin {answer.xmin:.17g} is none of the values", ""
    alpha = float(scan.alpha[at])
    if not abs(answer.alpha - alpha) <= ALPHA_TOLERANCE * alpha:
        return f"its alpha is {answer.alpha:.17g} at xmin {answer.xmin:.17g}, right is {alpha:.17g}", ""
    # |dD/d alpha| <= 0.37 / (alpha - 1), as for powerlaw.
    distance = two_sided(answer.x, answer.xmin, alpha)
    allowed = ks_tolerance(distance) + 0.37 * ALPHA_TOLERANCE * alpha / (alpha - 1)
    if not abs(answer.D - distance) <= allowed:
        return f"its D is {answer.D:.17g} at xmin {answer.xmin:.17g}, two-sided it is {distance:.17g}", ""
    ours = scan.index(our_xmin)
    if ours is not None and two_sided(answer.x, our_xmin, float(scan.alpha[ours])) < distance - allowed:
        return f"its xmin is {answer.xmin:.17g}, ours {our_xmin:.17g} of less D, two-sided too", ""
    return "", "" if at == ours else "another xmin: its D is two-sided"


def two_sided(evals: NDArray[np.float64], xmin: float, alpha: float) -> float:
    """max_j max(|F(x_j) - j/m|, |F(x_j) - (j + 1)/m|) over the tail, in extended precision."""
    tail = np.sort(evals[evals >= xmin]).astype(np.longdouble)
    model = 1 - (tail / tail[0]) ** (1 - np.longdouble(alpha))
    rank, m = np.arange(len(tail)), len(tail)
    return float(np.maximum(np.abs(model - rank / m), np.abs(model - (rank + 1) / m)).max())


WWFIT = Peer("WWFit", "weightwatcher", load_wwfit, judge_wwfit, True, None, worst=30, median=200)
# Three samples: some of its calls take a second.
POWERLAW = Peer("powerlaw.Fit", "powerlaw", load_powerlaw, judge_powerlaw, False, 3, worst=800, median=None)
POWERLAWRS = Peer(
    "powerlawrs", "powerlawrs", load_powerlawrs, judge_powerlawrs, False, None, worst=30, median=None
)
PEERS = (WWFIT, POWERLAW, POWERLAWRS)


def not_installed(peer: Peer) -> str:
    return f"not installed: pip install {peer.distribution}"


def peer_versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for peer in PEERS:
        try:
            found[peer.distribution] = importlib.metadata.version(peer.distribution)
        except importlib.metadata.PackageNotFoundError:
            found[peer.distribution] = None
    return found
