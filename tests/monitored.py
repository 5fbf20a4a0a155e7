"""Looks at a model that is not there: its spectra decay as a power law that grows steeper with every step."""

import itertools
import os

import numpy as np
import torch

from spectral_fast import stats_from_svdvals
from spectral_fast.monitor import parquet
from spectral_fast.monitor.parquet import ESTIMATED, ParquetSink
from spectral_fast.monitor.record import Look, MatrixLook
from spectral_fast.stats import scalar_fields

# A look at these matrices: (name, layer, role, rows, cols).
SMALL = tuple(
    (f"h.{layer}.{name}.weight", layer, role, 24, 16)
    for layer in range(2)
    for name, role in (("attn.q", "q"), ("mlp.fc1", "mlp_in"))
)


def spectrum(step: int, index: int, count: int) -> np.ndarray:
    """Singular values of matrix `index` at a step, descending."""
    exponent = 0.2 + 0.02 * index + 0.3 * step / (step + 50)
    return (3 * np.arange(1, count + 1) ** -exponent).astype(np.float32)


def look(step: int, kind: str = "exact", matrices=SMALL, *, every: int = 5, track_every: int = 1) -> Look:
    """A look; tracked values have an error of 1e-4, and the alphas are held since the last `every`th step."""
    found = [_matrix_look(step, kind, index, *about, every) for index, about in enumerate(matrices)]
    seconds = 0.05 if kind == "exact" else 0.004
    return Look(step, kind, 1.8e9 + step, seconds, 0.02 + 0.1 / (step + 1), every, track_every, found)


def _matrix_look(step, kind, index, name, layer, role, rows, cols, every) -> MatrixLook:
    values = spectrum(step, index, min(rows, cols))
    statistics = _statistics(values, rows, cols)
    errors, held = {}, ()
    if kind != "exact":
        statistics = {field: statistics[field] for field in (*ESTIMATED, "frobenius_norm", "xmin")}
        for field in ("spectral_norm", "stable_rank"):
            errors[field] = 1e-4 * statistics[field]
        if kind == "tracked":
            held = ("alpha", "alpha_hill", "alpha_ranksize")
            before = _statistics(spectrum(step - step % every, index, len(values)), rows, cols)
            statistics |= {field: before[field] for field in held}
            errors |= {field: 0.01 * statistics[field] for field in held}
        values = values[:8]
    return MatrixLook(name, layer, role, rows, cols, "float32", kind, statistics, errors, held, values)


def _statistics(values: np.ndarray, rows: int, cols: int) -> dict[str, float]:
    stats = stats_from_svdvals(torch.from_numpy(values), shape=(rows, cols))
    return {field: float(getattr(stats, field)) for field in scalar_fields()}


def write_run(path, kinds: dict[int, str], matrices=SMALL, **intervals) -> None:
    """A closed run with a look of the kind given at each step."""
    sink = ParquetSink(path)
    for step, kind in kinds.items():
        sink(look(step, kind, matrices, **intervals))
    sink.close()


def quick_look(step: int) -> Look:
    """A look without statistics to compute, known by its step."""
    values = np.full(8, step, dtype=np.float32)
    found = [
        MatrixLook(*about, "float32", "tracked", {"stable_rank": step + 0.5 * index}, {}, (), values)
        for index, about in enumerate(SMALL)
    ]
    return Look(step, "tracked", float(step), 0.0, 0.0, 5, 1, found)


def write_until_killed(path: str, first: int, acknowledged, part_bytes: int) -> None:
    """Write looks as fast as they go and send the step of each after its call has returned."""
    parquet._PART_BYTES = part_bytes
    sink = ParquetSink(path)
    acknowledged.send(os.getpid())
    for step in itertools.count(first):
        sink(quick_look(step))
        acknowledged.send(step)
