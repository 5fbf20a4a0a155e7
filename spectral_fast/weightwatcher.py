"""An unmodified WeightWatcher on the singular values and the power-law fit of this package.

Three functions inside weightwatcher are replaced for the time of a ``with``: the singular values, the search
for the best xmin, and the kernel density that its Marchenko-Pastur fit asks for a hundred times over. All
arithmetic that reaches its tables beyond that stays its own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from spectral_fast.heuristics import choose
from spectral_fast.linalg import svdvals
from spectral_fast.powerlaw import fit_powerlaw

_log = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]
Patch = tuple[Any, str, Any]  # module, attribute, value

# What is used of weightwatcher. A version that lacks one of them is refused whole.
_USED = {
    "RMT_Util": ("_svd_vals_accurate", "_svd_vals_fast", "pl_fit", "KernelDensity"),
    "WW_powerlaw": ("WWFit", "pl_fit", "SMALL_N_CUTOFF", "POWER_LAW", "WW_POWERLAW_PACKAGE", "FORCE"),
    "weightwatcher": ("WeightWatcher", "pl_fit"),
}

# The Gram matrix has lambda_n to about c n eps (sigma_1 / sigma_n)^2, relative: c < 0.02 for the spectra and
# shapes that were tried (docs/weightwatcher.md). Where c = 1 would still be ten times better than the 1e-6 to
# which tables agree, it is good enough.
_GRAM_ERROR = 1e-7
_EPS = torch.finfo(torch.float64).eps

_lock = threading.Lock()
_inside = 0
_originals: list[Patch] = []


@contextlib.contextmanager
def weightwatcher_accelerated() -> Iterator[None]:
    """Within it an unmodified weightwatcher computes its tables several times faster.

    Use::

        with spectral_fast.weightwatcher_accelerated():
            details = weightwatcher.WeightWatcher(model=model).analyze()

    The singular values come from :func:`spectral_fast.svdvals` in float64, with torch's number of threads,
    the best xmin of a power law from :func:`spectral_fast.fit_powerlaw`. Tables agree with weightwatcher's
    own to 1e-6, relative; docs/weightwatcher.md says what is replaced when, and what is not.

    It may be nested, and used as a decorator. The functions are replaced for the whole process, other
    threads included, from the first entry to the last exit, also after an exception.

    Raises ImportError where weightwatcher is not installed, and RuntimeError, with nothing changed, where
    its version lacks a function that is to be replaced or fits by another convention. Tested with 0.7.7.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside
    with _lock:
        if _inside == 0:
            patches = _replacements()
            try:
                for module, name, value in patches:
                    _originals.append((module, name, getattr(module, name)))
                    setattr(module, name, value)
            except BaseException:  # Ctrl-C
                _restore()
                raise
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            _restore()


def _restore() -> None:
    for module, name, value in reversed(_originals):
        setattr(module, name, value)
    _originals.clear()


def _replacements() -> list[Patch]:
    """Every attribute to set, after all that could be wrong with this weightwatcher was looked at."""
    rmt, fits, watcher = (_module(name) for name in _USED)
    values = _values_in_place_of(rmt._svd_vals_accurate)
    patches: list[Patch] = [(rmt, "_svd_vals_accurate", values)]
    if rmt._svd_vals_fast is rmt._svd_vals_accurate:
        patches.append((rmt, "_svd_vals_fast", values))
    else:  # another precision, which its rank columns show
        _log.warning(
            "weightwatcher runs svd_method='fast' on the GPU in float32; it keeps that. "
            "analyze(svd_method='accurate') takes the singular values of spectral_fast."
        )
    fit = _fit_in_place_of(fits)
    patches += [(module, "pl_fit", fit) for module in (fits, rmt, watcher)]
    patches.append((rmt, "KernelDensity", _remembering(rmt.KernelDensity)))
    _require_same_fit(fits, fit)
    return patches


def _module(name: str) -> Any:
    try:
        package = importlib.import_module("weightwatcher")
    except ModuleNotFoundError as error:
        if error.name != "weightwatcher":
            raise
        raise ImportError(
            "weightwatcher_accelerated needs weightwatcher, which the extra 'weightwatcher' brings: "
            "pip install 'spectral_fast[weightwatcher]'"
        ) from error
    version = getattr(package, "__version__", "of unknown version")
    try:
        module = importlib.import_module(f"weightwatcher.{name}")
    except ModuleNotFoundError as error:
        raise _unknown(version, f"has no module {name}") from error
    if missing := [attribute for attribute in _USED[name] if not hasattr(module, attribute)]:
        raise _unknown(version, f"has no {name}.{missing[0]}")
    return module


def _unknown(version: str, lack: str) -> RuntimeError:
    return RuntimeError(
        f"weightwatcher {version} {lack}, so spectral_fast cannot take its place there; nothing was changed. "
        "Use weightwatcher 0.7.7, or run it without weightwatcher_accelerated."
    )


def _values_in_place_of(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """scipy.linalg.svd(W, compute_uv=False) for float64 matrices; anything else goes to the original."""

    def svd_vals(W: Any) -> Any:
        if type(W) is not np.ndarray or W.dtype != np.float64 or W.ndim != 2:
            _log.debug("singular values of %s: weightwatcher's own", type(W).__name__)
            return original(W)
        plain = W.flags.forc and W.flags.writeable  # torch takes no other strides, and warns of read-only
        A = torch.from_numpy(W if plain else W.copy())
        try:
            values = _values_by_gram(A)
            return (svdvals(A) if values is None else values).numpy()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return original(W)  # which complains of a NaN or an infinity in its own words

    return svd_vals


def _values_by_gram(A: torch.Tensor) -> torch.Tensor | None:
    """Half the arithmetic for tall and wide matrices; None where that does not exist or is not accurate."""
    if choose(tuple(A.shape), A.dtype, "cpu", "gram").backend != "cpu":
        return None
    S = svdvals(A, driver="gram")
    if len(S) * _EPS * (S[0] / S[-1]).square() <= _GRAM_ERROR:  # not for S[-1] = 0: inf and NaN are not
        return S
    _log.debug("singular values of %s: too ill-conditioned for their Gram matrix", tuple(A.shape))
    return None


def _fit_in_place_of(fits: Any) -> Callable[..., Any]:
    """weightwatcher's pl_fit with a faster search where its WWFit and fit_powerlaw are the same fit."""
    original = fits.pl_fit
    fast = _fast_fit(fits.WWFit)

    def pl_fit(
        data: Any = None,
        xmin: Any = None,
        xmax: Any = None,
        verbose: bool = False,
        distribution: str = fits.POWER_LAW,
        pl_package: str = fits.WW_POWERLAW_PACKAGE,
    ) -> Any:
        if distribution == fits.POWER_LAW and pl_package == fits.WW_POWERLAW_PACKAGE:
            top = None if isinstance(xmax, str) and xmax == fits.FORCE else xmax
            found = _best_candidate(data, xmin, top, fits.SMALL_N_CUTOFF)
            if found is not None:
                return fast(*found, distribution)
        _log.debug("power-law fit: weightwatcher's own")
        return original(
            data=data, xmin=xmin, xmax=xmax, verbose=verbose, distribution=distribution, pl_package=pl_package
        )

    return pl_fit


def _best_candidate(data: Any, xmin: Any, xmax: Any, least: int) -> tuple[Array, int, int, int] | None:
    """Sorted data, the first and last index that WWFit fits to, and the best candidate's place in between.

    None where the conventions differ or may: fewer than `least` values, a value that is repeated, zero,
    negative or not finite. Data and limits that WWFit does not take raise what they raise there.
    """
    x = np.asarray(np.sort(data), dtype=np.float64)
    if x.ndim != 1:
        return None
    # As WWFit takes limits: the values nearest to them, with the search still going on in between.
    first = 0 if xmin is None else int(np.argmin(np.abs(x - xmin)))
    last = len(x) - 1 if xmax is None else int(np.argmin(np.abs(x - xmax)))
    inside = x[first : last + 1]
    if len(inside) < least or inside[0] <= 0 or np.isinf(inside[-1]) or not (np.diff(inside) > 0).all():
        return None  # a NaN is last in the order, and no difference to it is positive
    tail = int(fit_powerlaw(torch.from_numpy(inside)).n_tail)
    return x, first, last, len(inside) - tail


@functools.cache
def _fast_fit(WWFit: Any) -> Any:
    class Fit(WWFit):  # type: ignore[misc]
        """A WWFit whose best candidate is known beforehand; those of all others are computed when read."""

        def __init__(self, data: Array, first: int, last: int, best: int, distribution: str) -> None:
            self.i_min, self.i_max = first, last
            self.xmax = data[last]
            self._fitted = data[first : last + 1]
            self.N = len(self._fitted)
            self.xmins = self._fitted[:-1]
            self.distribution = distribution
            self.dists = {distribution: self}

            # The formulas of WWFit, term by term, so that a candidate's numbers are its numbers to the bit.
            tail, n = self._fitted[best:], float(self.N - best)
            logs = np.log(self._fitted)
            self.xmin = data[first + best]
            self.alpha = 1 + n / (np.sum(logs[best:]) - n * logs[best])
            model = 1 - (tail / self.xmin) ** (-self.alpha + 1)
            self.D = np.max(np.abs(model - np.arange(n) / n))
            self.sigma = (self.alpha - 1) / np.sqrt(self.N - best)
            self.data = tail

        @functools.cached_property
        def _search(self) -> Any:
            return WWFit(self._fitted, distribution=self.distribution)

        @functools.cached_property
        def alphas(self) -> Array:
            return self._search.alphas

        @functools.cached_property
        def Ds(self) -> Array:
            return self._search.Ds

        @functools.cached_property
        def sigmas(self) -> Array:
            return self._search.sigmas

    return Fit


def _require_same_fit(fits: Any, fit: Callable[..., Any]) -> None:
    """RuntimeError where this WWFit estimates something else than the one that `fit` was written for."""
    size = max(2 * fits.SMALL_N_CUTOFF, 32)
    # A tail above a bulk: the best candidate is neither the first nor the last.
    spectrum = np.linspace(0.1, 1, size) + (np.arange(size) / size) ** 8 * 10
    own, ours = fits.WWFit(spectrum), fit(data=spectrum)
    for name in ("alpha", "xmin", "D", "sigma"):
        if getattr(own, name) != getattr(ours, name):
            package = importlib.import_module("weightwatcher")
            raise _unknown(
                package.__version__,
                f"fits a power law by another convention ({name} {getattr(own, name)} instead of "
                f"{getattr(ours, name)})",
            )


def _remembering(KernelDensity: Any) -> Any:
    """KernelDensity with its last answer kept: the fit of sigma asks for one density at every step."""
    last: tuple[dict[str, Any], Array, Array, Array] | None = None

    class Remembering:
        def __init__(self, **parameters: Any) -> None:
            self._parameters = parameters

        def fit(self, X: Array) -> Remembering:
            self._sample = X
            return self

        def score_samples(self, X: Array) -> Array:
            nonlocal last
            asked, answer = (self._parameters, self._sample, X), last  # other threads replace it
            if (
                answer is None
                or answer[0] != asked[0]
                or not all(map(np.array_equal, answer[1:3], asked[1:]))
            ):
                density = KernelDensity(**self._parameters).fit(self._sample).score_samples(X)
                last = answer = (self._parameters, self._sample.copy(), X.copy(), density)
            return answer[3].copy()

    return Remembering
