"""The zoo of spectra that a power law is fitted to: the same ones in every run.

A scan that skips candidates has an easy time where one xmin is clearly the best and a hard one where many are
nearly as good. Samples of a power law are the worst case: every candidate fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.suites import minilm_file
from spectral_fast import weight_matrices

Values = NDArray[np.float64]
Maker = Callable[[int, np.random.Generator], Values]


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues lambda > 0 in float64, descending as a squared spectrum is, all different."""

    name: str
    evals: Values

    @property
    def n(self) -> int:
        return len(self.evals)


def pareto(alpha: float) -> Maker:
    """A sample of the density x^-alpha, x >= 1."""
    return lambda n, g: (1 - g.random(n)) ** (-1 / (alpha - 1))


def exact_quantiles(n: int, g: np.random.Generator) -> Values:
    """The middles of n equally likely parts of x^-2.5: a power law without noise."""
    return ((np.arange(n) + 0.5) / n) ** (-1 / 1.5)


def gaussian_matrix(rows_per_column: int) -> Maker:
    """Marchenko-Pastur: a matrix of independent entries of variance 1 / rows."""
    return lambda n, g: gram_values(g.standard_normal((rows_per_column * n, n)))


def spiked_bulk(n: int, g: np.random.Generator) -> Values:
    """Independent entries plus rank 16, whose values leave the bulk one by one."""
    rank = min(16, n // 4)
    strength = np.geomspace(1.5, 8, rank)
    left, right = g.standard_normal((4 * n, rank)), g.standard_normal((rank, n))
    return gram_values(g.standard_normal((4 * n, n)) + (left * strength) @ right / np.sqrt(n))


def pareto_over_bulk(n: int, g: np.random.Generator) -> Values:
    """Four fifths a Marchenko-Pastur bulk, and above its edge a sample of x^-2.5."""
    tail = n // 5
    bulk = gaussian_matrix(4)(n - tail, g)
    return np.concatenate([bulk, bulk.max() * pareto(2.5)(tail, g)])


def two_slopes(n: int, g: np.random.Generator) -> Values:
    """A sample of a density that is x^-1.5 from 1 to 10 and goes on as x^-3.5."""
    lower = 2 * (1 - 10**-0.5)
    upper = 10**-1.5 * 10 / 2.5
    v = g.random(n)
    below = (1 - v * (1 - 10**-0.5)) ** -2.0
    above = 10 * (1 - v) ** (-1 / 2.5)
    return np.where(g.random(n) < lower / (lower + upper), below, above)


def geometric(n: int, g: np.random.Generator) -> Values:
    """Equal steps of the logarithm over four decades."""
    return np.geomspace(1e-2, 1e2, n)


def gram_values(A: Values) -> Values:
    """Squared singular values of A, entries of variance 1, divided by its rows.

    By way of the Gram matrix: lambda_n of a square one is about n^-2, far above that way's eps lambda_1.
    """
    gram = torch.from_numpy(A.T @ A / len(A))
    values: Values = torch.linalg.eigvalsh(gram).numpy()
    return values


ZOO: dict[str, Maker] = {
    **{f"Pareto {alpha:g}": pareto(alpha) for alpha in (1.5, 2, 2.5, 3.5, 6)},
    "exact quantiles": exact_quantiles,
    "Gaussian n×n": gaussian_matrix(1),
    "Gaussian 4n×n": gaussian_matrix(4),
    "log-normal": lambda n, g: np.exp(g.standard_normal(n)),
    "exponential": lambda n, g: g.exponential(size=n),
    "uniform": lambda n, g: g.uniform(0.01, 1, n),
    "spiked bulk": spiked_bulk,
    "Pareto over bulk": pareto_over_bulk,
    "two slopes": two_slopes,
    "geometric": geometric,
}


def draw(name: str, n: int, number: int = 0) -> Spectrum:
    """One spectrum of the zoo; another number is another sample."""
    g = np.random.default_rng([n, list(ZOO).index(name), number])
    return Spectrum(name, descending(ZOO[name](n, g)))


def mixture(count: int, n: int) -> list[Spectrum]:
    """The zoo over and over, each time with new samples."""
    names = list(ZOO)
    return [draw(names[i % len(names)], n, 1 + i // len(names)) for i in range(count)]


def minilm_spectra() -> list[Spectrum]:
    """Trained weights: one matrix of each role, each from another layer.

    Raises SuiteError where the package with the weights is not installed.
    """
    by_role: dict[str, list[Any]] = {}
    for weight in weight_matrices(load_file(minilm_file())):
        if weight.layer is not None:
            by_role.setdefault(weight.role, []).append(weight)
    found = []
    for place, (role, weights) in enumerate(by_role.items()):
        weight = weights[place % len(weights)]
        values = torch.linalg.svdvals(weight.tensor.double()).numpy()
        found.append(Spectrum(f"MiniLM {role} {weight.layer}", descending(values**2)))
    return found


def descending(values: Values) -> Values:
    """A sorted copy, refused where it is no spectrum of distinct positive values."""
    out = np.sort(np.asarray(values, dtype=np.float64))[::-1].copy()
    if not (np.isfinite(out).all() and out[-1] > 0 and (np.diff(out) < 0).all()):
        raise ValueError("a spectrum of the zoo must have finite, positive, different values")
    return out
