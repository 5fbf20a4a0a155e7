"""The work behind ``spectral-fast analyze``: from a checkpoint's matrices to one row of statistics each."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from spectral_fast.linalg import svdvals
from spectral_fast.models import WeightMatrix
from spectral_fast.models.roles import EMBEDDING_ROLES, reading_order
from spectral_fast.plots import LayerSpectrum
from spectral_fast.stats import scalar_fields, stats_from_svdvals

# Matrices before and after the layers, left out unless asked for.
_OUTSIDE_ROLES = EMBEDDING_ROLES | {"pooler", "head"}


@dataclass(frozen=True)
class Row:
    """The result for one matrix.

    Attributes:
        matrix: the matrix, not in memory.
        statistics: those of `scalar_fields` as plain numbers, None if it could not be analysed. (Thousands of
            small tensors between large ones that come and go would keep the heap from shrinking.)
        spectrum: what a picture needs, where it was asked for and the matrix is in a layer.
        note: why there are no statistics, or else what the matrix's own note says.
    """

    matrix: WeightMatrix
    statistics: dict[str, float] | None = None
    spectrum: LayerSpectrum | None = None
    note: str = ""

    def value(self, statistic: str) -> float:
        """One statistic as a number, NaN if the matrix could not be analysed."""
        return float("nan") if self.statistics is None else self.statistics[statistic]


def select(matrices: Iterable[WeightMatrix], *, embeddings: bool) -> list[WeightMatrix]:
    """The matrices to analyse in reading order; without embeddings, pooler and head unless asked for."""
    chosen = [matrix for matrix in matrices if embeddings or matrix.role not in _OUTSIDE_ROLES]
    return sorted(chosen, key=lambda m: (*reading_order(m.role, m.layer), _natural(m.name)))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts expert 2 before expert 10."""
    pieces = re.split(r"(\d+)", name)
    return [(int(piece) if piece.isdecimal() else -1, piece) for piece in pieces]


def analyze_matrix(
    matrix: WeightMatrix, *, device: torch.device, driver: str | None, keep_spectrum: bool
) -> Row:
    """The statistics of one matrix; a matrix that cannot be analysed gives a row that says why.

    Args:
        matrix: the matrix; it is in memory only during the call.
        device: where to compute its singular values.
        driver: as in `spectral_fast.svdvals`.
        keep_spectrum: keep what a picture needs in the row.
    """
    try:
        tensor = matrix.tensor.to(device)
        values = svdvals(tensor, driver=driver).cpu()
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        bad = int((~torch.isfinite(tensor)).sum())
        note = f"{bad} of its {tensor.numel()} entries are NaN or infinite" if bad else str(error)
        return Row(matrix, note=note)
    except (torch.OutOfMemoryError, MemoryError):
        return Row(matrix, note=f"out of memory on {device}")
    except ValueError as error:  # the file has changed, or the driver does not take this dtype
        return Row(matrix, note=str(error))
    stats = stats_from_svdvals(values, shape=matrix.shape)
    numbers = {statistic: getattr(stats, statistic).item() for statistic in scalar_fields()}
    spectrum = None
    if keep_spectrum and matrix.layer is not None:
        spectrum = LayerSpectrum(matrix.layer, matrix.role, values, stats)
    return Row(matrix, numbers, spectrum, matrix.note)
