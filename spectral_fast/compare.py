"""``spectral-fast analyze --compare``: time and error of spectral_fast and torch on the same matrices."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spectral_fast.linalg import svdvals

_REPEATS = 3


@dataclass(frozen=True)
class Comparison:
    """Times in seconds and errors over sigma_1 of spectral_fast and torch on one matrix."""

    name: str
    seconds: float
    seconds_torch: float
    error: float
    error_torch: float
    error_bound: float


def compare(name: str, matrix: torch.Tensor, *, driver: str | None, ours_first: bool) -> Comparison:
    """Time both on one matrix, in turns, and judge both against float64.

    Args:
        name: the matrix's name.
        matrix: shape (rows, cols), on the CPU.
        driver: the driver of spectral_fast.
        ours_first: who begins; alternate between matrices.
    """
    if matrix.dtype in (torch.float16, torch.bfloat16):
        matrix = matrix.float()  # torch refuses 16-bit input

    def ours(matrix: torch.Tensor) -> torch.Tensor:
        return svdvals(matrix, driver=driver)

    functions = (ours, torch.linalg.svdvals)
    order = (0, 1) if ours_first else (1, 0)
    results = [function(matrix) for function in functions]  # the warm-up
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS):
        for which in order:
            start = time.perf_counter()
            functions[which](matrix)
            seconds[which].append(time.perf_counter() - start)
        order = order[::-1]
    exact = torch.linalg.svdvals(matrix.double())
    largest = max(float(exact[0]), torch.finfo(torch.float64).tiny)
    error, error_torch = (float((s.double() - exact).abs().max()) / largest for s in results)
    # The package's promise: twice torch's error, or c * eps.
    size = min(matrix.shape)
    floor = (2 if size <= 128 else 4 if size <= 1024 else 8) * torch.finfo(matrix.dtype).eps
    if matrix.dtype == torch.float64:
        floor *= 2  # the oracle is no more exact than what it judges
    return Comparison(
        name,
        statistics.median(seconds[0]),
        statistics.median(seconds[1]),
        error,
        error_torch,
        max(2 * error_torch, floor),
    )


def verdict(comparisons: Sequence[Comparison]) -> tuple[str, bool]:
    """The comparison in one line, and whether accuracy was met; without it no speed-up is given."""
    if not comparisons:
        return "nothing to compare: no matrix could be analysed", True
    for comparison in comparisons:
        # Written so that a NaN fails.
        if not comparison.error <= comparison.error_bound:
            return (
                f"accuracy missed, so no times are given: {comparison.name}: error / sigma_1 "
                f"{comparison.error:.1e}, allowed {comparison.error_bound:.1e}"
            ), False
    seconds = sum(c.seconds for c in comparisons)
    seconds_torch = sum(c.seconds_torch for c in comparisons)
    threads = torch.get_num_threads()
    matrices = "1 matrix" if len(comparisons) == 1 else f"{len(comparisons)} matrices"
    return (
        f"{matrices}: spectral_fast {seconds:.3g} s, "
        f"torch.linalg.svdvals {seconds_torch:.3g} s ({seconds_torch / seconds:.1f}x, "
        f"{threads} thread{'' if threads == 1 else 's'}); max error / sigma_1: "
        f"{max(c.error for c in comparisons):.1e} vs "
        f"{max(c.error_torch for c in comparisons):.1e}"
    ), True
