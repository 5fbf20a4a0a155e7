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

from benchmarks.stats_gate import Scan, fit_error, ks_tolerance
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


WWFIT = Peer("WWFit", "weightwatcher", load_wwfit, judge_wwfit, True, None, worst=30, median=200)
# Three samples: some of its calls take a second.
POWERLAW = Peer("powerlaw.Fit", "powerlaw", load_powerlaw, judge_powerlaw, False, 3, worst=800, median=None)
PEERS = (WWFIT, POWERLAW)


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
