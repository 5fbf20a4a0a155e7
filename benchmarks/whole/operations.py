"""Public operations that have no suite of their own, each beside what people use in its place.

The gradient of svdvals, svdvals_ex, hill_alpha, ranksize_slope and compare_lognormal. A check of the values
comes before each time.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import spectral_fast
from benchmarks.accuracy_gate import Gate
from benchmarks.cases import random_weights
from benchmarks.rows import GateError, NotMeasured, TimedRow, pair_data, require
from benchmarks.statistics.spectra import draw, mixture
from benchmarks.timing import Contestant, Timing, host_clock, interleave

# Sums of n terms: (n + 8) eps of their largest partial sum; n is 768 here and the logarithms are below 22.
SUM_TOLERANCE = 1e-11


class Operation(TimedRow):
    """One operation on one input. ``peer``: what is timed beside it.

    ``threads``: of both, and of the BLAS.
    """

    name: str
    peer: str

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.status = "ok"
        self.peer_status = ""
        self.timings: tuple[Timing, Timing] | None = None

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def ours(self) -> Any: ...

    @abstractmethod
    def theirs(self) -> Any: ...

    @abstractmethod
    def error(self, got: Any) -> str:
        """What is wrong with our answer; empty where nothing is."""

    def clear(self) -> None:
        self.timings = None

    def measure(self, repeats: int | None) -> None:
        torch.set_num_threads(self.threads)
        try:
            self.theirs()
        except ImportError as error:
            raise NotMeasured(f"{self.peer} is not installed: pip install {error.name}") from error
        if wrong := self.error(self.ours()):
            raise GateError(wrong)
        ours, theirs = interleave(
            [
                Contestant("ours", self.ours, self.threads),
                Contestant(self.peer, self.theirs, self.threads),
            ],
            host_clock,
            repeats,
        )
        require(ours)
        self.peer_status = theirs.status
        if theirs.ok:
            self.timings = ours, theirs

    def data(self) -> dict[str, Any]:
        pair = {} if self.timings is None else pair_data(self.timings[1], self.timings[0])
        return {
            "operation": self.name,
            "threads": self.threads,
            "peer": self.peer,
            "status": self.status,
            "peer_status": self.peer_status,
            **pair,
        }


class Gradient(Operation):
    """d(sum of the singular values)/dA, forward and backward."""

    peer = "torch.linalg.svdvals, backward"

    def __init__(self, threads: int, m: int, n: int) -> None:
        super().__init__(threads)
        self.name = f"gradient of svdvals, {m}×{n}"
        self.A = random_weights(1, m, n, torch.float32)[0]

    def _gradient(self, values: Callable[[Tensor], Tensor], A: Tensor) -> Tensor:
        leaf = A.detach().requires_grad_()
        values(leaf).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    def ours(self) -> Tensor:
        return self._gradient(spectral_fast.svdvals, self.A)

    def theirs(self) -> Tensor:
        return self._gradient(torch.linalg.svdvals, self.A)

    def error(self, got: Tensor) -> str:
        """At most twice torch's own error, against float64: both use the vectors of torch.linalg.svd."""
        exact = self._gradient(torch.linalg.svdvals, self.A.double())
        error, torch_error = (float((one.double() - exact).abs().max()) for one in (got, self.theirs()))
        return "" if error <= 2 * torch_error else f"off by {error:.1e}, torch's by {torch_error:.1e}"


class Ex(Operation):
    """svdvals_ex: no exception, an info number for each matrix."""

    peer = "torch.linalg.svdvals"

    def __init__(self, threads: int, count: int, m: int, n: int) -> None:
        super().__init__(threads)
        self.name = f"svdvals_ex, {count}×{m}×{n}"
        self.A = random_weights(count, m, n, torch.float32)

    def ours(self) -> Any:
        return spectral_fast.svdvals_ex(self.A)

    def theirs(self) -> Tensor:
        return torch.linalg.svdvals(self.A)

    def error(self, got: Any) -> str:
        if got[1].any():
            return "info is not 0"
        return Gate(self.A).check(got[0]).failure


class Hill(Operation):
    """hill_alpha of a batch, against NumPy written for the whole batch."""

    peer = "NumPy"

    def __init__(self, threads: int, count: int, n: int) -> None:
        super().__init__(threads)
        self.name = f"hill_alpha, {count} spectra, n = {n}"
        self.evals = np.stack([one.evals for one in mixture(count, n)])
        self.batch = torch.from_numpy(self.evals)

    def ours(self) -> Tensor:
        return spectral_fast.hill_alpha(self.batch)

    def theirs(self) -> Any:
        return self._numpy(self.evals)

    def _numpy(self, evals: Any) -> Any:
        tail = np.sort(evals, axis=-1)[:, evals.shape[-1] // 2 :]
        return 1 + tail.shape[-1] / np.log(tail / tail[:, :1]).sum(-1)

    def error(self, got: Tensor) -> str:
        return _relative(got, self._numpy(self.evals.astype(np.longdouble)))


class RankSize(Operation):
    """ranksize_slope of a batch, against numpy.polyfit for the whole batch."""

    peer = "numpy.polyfit"

    def __init__(self, threads: int, count: int, n: int) -> None:
        super().__init__(threads)
        self.name = f"ranksize_slope, {count} spectra, n = {n}"
        self.values = np.sqrt(np.stack([one.evals for one in mixture(count, n)]))
        self.batch = torch.from_numpy(self.values)

    def ours(self) -> Tensor:
        return spectral_fast.ranksize_slope(self.batch)

    def theirs(self) -> Any:
        x = np.log(np.arange(1, self.values.shape[-1] + 1))
        return -np.polyfit(x, np.log(self.values).T, 1)[0]

    def error(self, got: Tensor) -> str:
        x = np.log(np.arange(1, self.values.shape[-1] + 1, dtype=np.longdouble))
        x = x - x.mean()
        return _relative(got, -(np.log(self.values.astype(np.longdouble)) @ x) / (x @ x))


class LogNormal(Operation):
    """compare_lognormal of one spectrum, against powerlaw's distribution_compare at the same xmin."""

    peer = "powerlaw.distribution_compare"

    def __init__(self, threads: int, n: int) -> None:
        super().__init__(threads)
        self.name = f"compare_lognormal, n = {n}"
        self.evals = draw("log-normal", n).evals
        self.xmin = float(spectral_fast.fit_powerlaw(torch.from_numpy(self.evals)).xmin)

    def ours(self) -> Any:
        return spectral_fast.compare_lognormal(torch.from_numpy(self.evals), xmin=self.xmin)

    def theirs(self) -> tuple[Any, Any]:
        import powerlaw

        fit = powerlaw.Fit(self.evals, xmin=self.xmin, parameter_ranges={"alpha": [1.0, 1e4]}, verbose=0)
        return fit, fit.distribution_compare("power_law", "lognormal", normalized_ratio=True)

    def error(self, got: Any) -> str:
        """Ours is the maximum of the likelihood: powerlaw's simplex may not find a more likely log-normal."""
        fit = self.theirs()[0].lognormal
        ours = self._log_likelihood(float(got.mu), float(got.sigma))
        theirs = self._log_likelihood(float(fit.mu), float(fit.sigma))
        # Rounding of n logarithms, each below 22 in size.
        allowed = len(self.evals) * 22 * np.finfo(np.float64).eps * 8
        if not ours >= theirs - allowed:
            return f"log-likelihood {ours:.12g}, powerlaw's log-normal has {theirs:.12g}"
        return ""

    def _log_likelihood(self, mu: float, sigma: float) -> float:
        from scipy.stats import norm

        y = np.log(self.evals[self.evals >= self.xmin])
        beyond = norm.logsf((math.log(self.xmin) - mu) / sigma)
        return float((norm.logpdf(y, mu, sigma) - y - beyond).sum())


def operations(threads: int, n: int) -> list[Operation]:
    """Each once: matrices with n columns, spectra of n values."""
    return [
        Gradient(threads, n, n),
        Ex(threads, 12, n, n),
        Hill(threads, 48, n),
        RankSize(threads, 48, n),
        LogNormal(threads, n),
    ]


def _relative(got: Tensor, exact: Any) -> str:
    off = float(np.abs(got.numpy().astype(np.longdouble) / exact - 1).max())
    return "" if off <= SUM_TOLERANCE else f"off by {off:.1e} of itself, allowed {SUM_TOLERANCE:g}"
