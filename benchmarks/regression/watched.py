"""The operations whose time is watched: on which matrices, how values are checked, what a call works.

``python -m benchmarks base`` and the micro-benchmarks take them from here, so that their figures are of the
same calls. Another commit may lack some: modules that need more of the package than WeightMatrix and svdvals
are imported where an operation is prepared.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import spectral_fast
from benchmarks.accuracy_gate import Gate
from benchmarks.cases import Case, random_weights

# What SpectralTracker keeps of a matrix by default: leading vectors, probes, of those for the drift.
VECTORS, PROBES, DRIFT = 32, 16, 4
PROBE_SETS = 4


@dataclass(frozen=True)
class Prepared:
    """A call on its inputs. ``check`` tells what is wrong with what the call returns; empty: nothing."""

    call: Callable[[], Any]
    check: Callable[[Any], str]


@dataclass(frozen=True)
class Kind:
    """A function of the package.

    Attributes:
        needs: the names it is made of, as ``module:attribute``.
        prepare: from a shape (*, m, n) and a dtype.
        flops: of a call; None where it depends on the numbers.
        bytes: of what a call is given and returns, each once.
    """

    needs: tuple[str, ...]
    prepare: Callable[[tuple[int, ...], torch.dtype], Prepared]
    flops: Callable[[tuple[int, ...]], float] | None
    bytes: Callable[[tuple[int, ...], int], float]


@dataclass(frozen=True)
class Operation:
    """One call: a kind on random matrices, or spectra, of a shape."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return f"{self.kind} {self.case}"

    @property
    def case(self) -> str:
        """Stable: saved times are compared by it."""
        suffix = "" if self.dtype == torch.float32 else f" {str(self.dtype).removeprefix('torch.')}"
        return "x".join(map(str, self.shape)) + suffix

    @property
    def work(self) -> dict[str, float]:
        """Flops, where they are known beforehand, and bytes of a call."""
        kind = KINDS[self.kind]
        work = {} if kind.flops is None else {"flops": kind.flops(self.shape)}
        return {**work, "bytes": kind.bytes(self.shape, self.dtype.itemsize)}

    def missing(self) -> list[str]:
        """The names that this package does not have."""
        return [name for name in KINDS[self.kind].needs if not _has(name)]

    def prepare(self) -> Prepared:
        return KINDS[self.kind].prepare(self.shape, self.dtype)


def _has(name: str) -> bool:
    module, _, attribute = name.partition(":")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        return False


def operations(max_n: int | None, shapes: Iterable[tuple[int, ...]] | None = None) -> list[Operation]:
    """What is watched, no dimension above max_n; with shapes, every kind that takes matrices, on those."""
    if shapes is not None:
        chosen = list(shapes)
        return [
            Operation(kind, shape)
            for kind in MATRIX_KINDS
            for shape in chosen
            if kind != "tracked_look" or shape[-1] >= VECTORS  # as many vectors as there are columns at most
        ]
    watched = [Operation("svdvals", shape) for shape in svdvals_shapes()] + [
        *(Operation("svdvals", shape, torch.float64) for shape in ((512, 512), (3072, 768))),
        *(Operation("spectral_stats", shape) for shape in ((256, 128, 128), (768, 768), (3072, 768))),
        *(Operation("fit_powerlaw", shape, torch.float64) for shape in ((768,), (2048,), (48, 768))),
        *(Operation("gram_product", shape) for shape in ((768, 768), (3072, 768))),
        *(Operation("tracked_look", shape) for shape in ((768, 768), (3072, 768), (4, 512, 512))),
        *(Operation("tail_stats", shape) for shape in ((768, 768), (2048, 2048))),
    ]
    return [one for one in watched if max_n is None or max(one.shape[-2:]) <= max_n]


def svdvals_shapes() -> list[tuple[int, ...]]:
    """Of the suites single and small-batches, and one matrix of each shape of the nine models."""
    from benchmarks.suites import build_suite

    models = [(case.m, case.n) for case in build_suite("nine-models")]
    return list(
        dict.fromkeys(
            [case.shape for case in build_suite("single") + build_suite("small-batches")]
            + sorted(models, key=lambda shape: (shape[0] * shape[1] * min(shape), shape))
        )
    )


def matrices(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The matrices of the other benchmarks, the same in every process."""
    m, n = shape[-2:]
    return random_weights(_count(shape), m, n, dtype).reshape(shape)


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else 1


def _svdvals(shape: tuple[int, ...], dtype: torch.dtype) -> Prepared:
    A = matrices(shape, dtype)
    return Prepared(lambda: spectral_fast.svdvals(A), lambda S: Gate(A).check(S).failure)


def _spectral_stats(shape: tuple[int, ...], dtype: torch.dtype) -> Prepared:
    from benchmarks.statistics.gate import check_fields

    A = matrices(shape, dtype)

    def check(stats: spectral_fast.SpectralStats) -> str:
        S = stats.svdvals
        assert S is not None
        if failure := Gate(A).check(S).failure:
            return failure
        flat, m, n = S.reshape(-1, S.shape[-1]), *shape[-2:]
        fields = {name: value.reshape(-1) for name, value in vars(stats).items() if name != "svdvals"}
        return check_fields(spectral_fast.SpectralStats(**fields, svdvals=flat), flat, (m, n), 0)

    return Prepared(lambda: spectral_fast.spectral_stats(A, return_svdvals=True), check)


def _fit_powerlaw(shape: tuple[int, ...], dtype: torch.dtype) -> Prepared:
    """Samples of x^-2.5: every candidate for xmin fits, the most work for a scan that skips."""
    from benchmarks.statistics.gate import check_fits, scan

    sample = (1 - np.random.default_rng(shape[-1]).random(shape)) ** (-1 / 1.5)
    evals = torch.from_numpy(np.sort(sample, axis=-1)[..., ::-1].copy()).to(dtype)

    def check(fit: spectral_fast.PowerLawFit) -> str:
        few = fit._replace(**{name: value.reshape(-1)[:1] for name, value in fit._asdict().items()})
        return check_fits(few, [scan(evals.reshape(-1, shape[-1])[0].double().numpy())]).failure

    return Prepared(lambda: spectral_fast.fit_powerlaw(evals), check)


def _gram_product(shape: tuple[int, ...], dtype: torch.dtype) -> Prepared:
    from spectral_fast import _ops

    A = matrices(shape, dtype)
    X = torch.randn(*shape[:-2], shape[-1], VECTORS + PROBES, dtype=dtype, generator=_generator())

    def check(found: tuple[Tensor, Tensor]) -> str:
        """Roundings of sums of n and of m add up as their roots; product and result have one more each."""
        a, x = A.double(), X.double()
        m, n = shape[-2:]
        bound = (m**0.5 + n**0.5 + 2) * torch.finfo(dtype).eps / 2 * (a.abs().mT @ (a.abs() @ x.abs()))
        worst = float(((found[0] - a.mT @ (a @ x)).abs() / bound).max())
        return "" if worst <= 1 else f"an entry errs by {worst:.3g} of what is allowed"

    return Prepared(lambda: _ops.gram_product(A, X), check)


def _tracked_look(shape: tuple[int, ...], dtype: torch.dtype) -> Prepared:
    """From vectors near the leading ones: a look with one product, as most are."""
    from spectral_fast import _ops

    A, generator = matrices((_count(shape), *shape[-2:]), dtype), _generator()
    count, m, n = A.shape

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=dtype, generator=generator)

    leading = torch.linalg.eigh(A.double().mT @ A.double())[1].flip(-1)[..., :VECTORS].to(dtype)
    V = torch.linalg.qr(leading + 1e-3 * normal(count, n, VECTORS)).Q
    probes = normal(count, n, PROBES)
    reference = (1.01 * (A.double().mT @ (A.double() @ probes[..., -DRIFT:].double()))).to(dtype)
    line, fresh = torch.ones(count, 2, dtype=torch.float64), normal(count, n)
    # No limit on what is pending: no product is repeated.
    arguments = (list(A), V, fresh, probes, reference, line, float("inf"), 1, 1)

    def check(found: Any) -> str:
        """Ritz values (spectral_fast.subspace) in float64: V^T Z = L L^T, eigenvalues of L^-1 Z^T Z L^-T.

        A product errs by g = (sqrt m + sqrt n + 2) u |A|_F^2; the two that they are made of take over twice
        that each.
        """
        Z = A.double().mT @ (A.double() @ V.double())
        L = torch.linalg.cholesky(V.double().mT @ Z)
        half = torch.linalg.solve_triangular(L, Z.mT, upper=False)
        exact = torch.linalg.eigvalsh(half @ half.mT).flip(-1)
        energy = A.double().square().sum((-1, -2))
        g = (m**0.5 + n**0.5 + 2) * torch.finfo(dtype).eps / 2 * energy
        squares = float(((found[0] - exact).abs() / (4 * g[:, None])).max())
        worst = max(squares, float(((found[3] - energy).abs() / g).max()))
        return "" if worst <= 1 else f"a Ritz value or the energy errs by {worst:.3g} of what is allowed"

    return Prepared(lambda: _ops.tracked_look(*arguments), check)


def _tail_stats(shape: tuple[int, ...], dtype: torch.dtype) -> Prepared:
    from benchmarks.statistics.tail import STABLE_RANK_ERROR
    from spectral_fast.tail import tail_stats

    A = matrices(shape, dtype)

    def check(found: Any) -> str:
        """rms over sets of probes, the target of the benchmark ``tail``."""
        exact = spectral_fast.spectral_stats(A).stable_rank
        sets = [tail_stats(A, generator=torch.Generator().manual_seed(seed)) for seed in range(PROBE_SETS)]
        error = float((torch.stack([one.stable_rank for one in sets]) / exact - 1).square().mean().sqrt())
        if not error <= STABLE_RANK_ERROR:
            return f"stable rank off by {error:.1e} rms, over {STABLE_RANK_ERROR:g}"
        return ""

    return Prepared(lambda: tail_stats(A), check)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _bidiagonalization(shape: tuple[int, ...]) -> float:
    return Case(shape[-2], shape[-1], _count(shape)).flops


def _product(shape: tuple[int, ...]) -> float:
    """A X and A^T of that, for as many columns as a tracked look has; what a look adds is s^2 n and less."""
    return 4.0 * _count(shape) * shape[-2] * shape[-1] * (VECTORS + PROBES)


def _matrix_and_values(shape: tuple[int, ...], itemsize: int) -> float:
    m, n = shape[-2:]
    return float(_count(shape) * (m * n + min(m, n)) * itemsize)


def _matrix_and_blocks(shape: tuple[int, ...], itemsize: int) -> float:
    m, n = shape[-2:]
    return float(_count(shape) * (m * n + 2 * n * (VECTORS + PROBES)) * itemsize)


def _spectra(shape: tuple[int, ...], itemsize: int) -> float:
    return float(np.prod(shape) * itemsize)


KINDS = {
    "svdvals": Kind(("spectral_fast:svdvals",), _svdvals, _bidiagonalization, _matrix_and_values),
    "spectral_stats": Kind(
        ("spectral_fast:spectral_stats", "spectral_fast:SpectralStats"),
        _spectral_stats,
        _bidiagonalization,
        _matrix_and_values,
    ),
    "fit_powerlaw": Kind(
        ("spectral_fast:fit_powerlaw", "spectral_fast:PowerLawFit"), _fit_powerlaw, None, _spectra
    ),
    "gram_product": Kind(("spectral_fast._ops:gram_product",), _gram_product, _product, _matrix_and_blocks),
    "tracked_look": Kind(("spectral_fast._ops:tracked_look",), _tracked_look, _product, _matrix_and_blocks),
    "tail_stats": Kind(("spectral_fast.tail:tail_stats",), _tail_stats, None, _matrix_and_values),
}
MATRIX_KINDS = tuple(kind for kind in KINDS if kind != "fit_powerlaw")
