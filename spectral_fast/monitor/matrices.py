"""From what was computed of a group of matrices to the records of a look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectral_fast.monitor.groups import Group
from spectral_fast.monitor.record import Kind, MatrixLook
from spectral_fast.stats import SpectralStats, scalar_fields, spectral_stats
from spectral_fast.tracker import Matrices, TrackedStats

STATISTICS = scalar_fields()


@dataclass(eq=False)
class Found:
    """What was computed of a group, as few tensors so that few are copied from a device.

    Attributes:
        kind: of the look at it.
        names, of_errors: of the columns of ``values`` and ``errors``.
        held: names of the statistics that were carried over.
        tensors: ``values`` (matrices, names) and ``errors`` (matrices, of_errors) float64, ``svdvals``
            (matrices, values) float32, ``wants_exact`` (matrices,) bool.
        failed: something raised, and there is no anchor to track from.
    """

    kind: Kind
    names: tuple[str, ...]
    of_errors: tuple[str, ...]
    held: tuple[str, ...]
    tensors: dict[str, Tensor]
    failed: bool = False


def exact(stats: SpectralStats) -> Found:
    """What an exact look found; stats with svdvals."""
    assert stats.svdvals is not None
    values = _columns(stats, STATISTICS)
    tensors = {"values": values, "svdvals": stats.svdvals.to(torch.float32)}
    return Found("exact", STATISTICS, (), (), tensors)


def tracked(stats: TrackedStats) -> Found:
    """What a tracked look found: of the statistics, those that the tracker gives."""
    names = tuple(name for name in STATISTICS if hasattr(stats, name))
    of_errors = tuple(name for name in names if hasattr(stats, f"{name}_error"))
    tensors = {
        "values": _columns(stats, names),
        "errors": _columns(stats, tuple(f"{name}_error" for name in of_errors)),
        "svdvals": stats.leading.to(torch.float32),
        # An exact look at what is not finite would tell no more.
        "wants_exact": stats.needs_exact & stats.spectral_norm.isfinite(),
    }
    return Found("tracked", names, of_errors, tuple(stats.held), tensors)


def one_by_one(A: Matrices) -> Found:
    """An exact look at each matrix of a batch by itself: NaN for those that fail."""
    found = []
    for matrix in A:
        try:
            found.append(exact(spectral_stats(matrix, return_svdvals=True)).tensors)
        except Exception:  # why was said of the batch
            found.append(_nan(matrix.shape, matrix.device))
    tensors = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    return Found("exact", STATISTICS, (), (), tensors, failed=True)


def nothing(group: Group, kind: Kind) -> Found:
    """NaN for every matrix of a group."""
    one = _nan(group.matrices[0].shape, torch.device("cpu"))
    tensors = {name: torch.stack([tensor] * len(group.matrices)) for name, tensor in one.items()}
    return Found(kind, STATISTICS, (), (), tensors, failed=True)


def _nan(shape: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    return {
        "values": torch.full((len(STATISTICS),), torch.nan, dtype=torch.float64, device=device),
        "svdvals": torch.full((min(shape),), torch.nan, dtype=torch.float32, device=device),
    }


def _columns(stats: Any, names: tuple[str, ...]) -> Tensor:
    return torch.stack([getattr(stats, name).to(torch.float64) for name in names], -1)


def records(group: Group, found: Found) -> Iterator[MatrixLook]:
    """The group's records; the tensors are on the host."""
    values = found.tensors["values"].tolist()
    errors = found.tensors["errors"].tolist() if found.of_errors else [()] * len(values)
    # A copy, because the tensors' memory is somebody else's soon.
    svdvals = found.tensors["svdvals"].numpy().copy()
    for i, matrix in enumerate(group.matrices):
        rows, cols = matrix.shape
        yield MatrixLook(
            name=matrix.name,
            layer=matrix.layer,
            role=matrix.role,
            rows=rows,
            cols=cols,
            dtype=str(matrix.dtype).removeprefix("torch."),
            kind=found.kind,
            statistics=dict(zip(found.names, values[i], strict=True)),
            errors=dict(zip(found.of_errors, errors[i], strict=True)),
            held=found.held,
            svdvals=svdvals[i],
        )
