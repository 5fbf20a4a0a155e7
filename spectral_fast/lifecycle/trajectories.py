"""A training run as arrays over looks and matrices: what every analysis of the lifecycle starts from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spectral_fast.analyze import select
from spectral_fast.models import open_checkpoint
from spectral_fast.stats import scalar_fields, spectral_stats

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trajectories:
    """All exact looks of one run.

    Attributes:
        steps: (T,) int64, ascending: optimizer steps made before each look.
        names: (M,) of the matrices.
        layers: (M,) the layer of each matrix, from 0; None outside the layers.
        roles: (M,) as in :class:`spectral_fast.WeightMatrix`.
        values: statistic by name -> (T, M) float64; NaN where a look does not have it.

    Raises:
        ValueError: the shapes do not fit, the steps do not ascend, or no matrix is in a layer.
    """

    steps: Whole
    names: tuple[str, ...]
    layers: tuple[int | None, ...]
    roles: tuple[str, ...]
    values: Mapping[str, Floats]

    def __post_init__(self) -> None:
        shape = (len(self.steps), len(self.names))
        if not len(self.names) == len(self.layers) == len(self.roles):
            raise ValueError(
                f"{len(self.names)} names, {len(self.layers)} layers and {len(self.roles)} roles: "
                "each matrix has one of each"
            )
        if np.any(np.diff(self.steps) <= 0):
            raise ValueError("the steps of a run ascend, each once")
        for statistic, value in self.values.items():
            if value.shape != shape:
                raise ValueError(f"{statistic} has shape {value.shape}; {shape} is looks and matrices")
        if all(layer is None for layer in self.layers):
            raise ValueError("no matrix has a layer number in its name; nothing can be said over depth")

    @property
    def depth(self) -> int:
        """The number of layers."""
        return 1 + max(layer for layer in self.layers if layer is not None)

    def layerwise(self, statistic: str, roles: Sequence[str] | None = None) -> Floats:
        """A statistic by layer: the mean over the layer's matrices of these roles.

        Args:
            statistic: its name, such as "stable_rank".
            roles: those to average over; None takes every matrix that is in a layer.

        Returns:
            (T, depth) float64; NaN where a matrix of the layer has no value, or the layer no such matrix:
            a mean over those that are left would jump where one goes missing.

        Raises:
            ValueError: the run does not have the statistic, or no layer a matrix of these roles.
        """
        if statistic not in self.values:
            raise ValueError(f"the run has no {statistic!r}; it has {', '.join(self.values)}")
        chosen = np.array([roles is None or role in roles for role in self.roles], dtype=bool)
        layers = np.array([-1 if layer is None else layer for layer in self.layers])
        if not np.any(chosen & (layers >= 0)):
            raise ValueError(f"no layer has a matrix of roles {roles}; there are {sorted(set(self.roles))}")
        value = self.values[statistic]
        columns = []
        for layer in range(self.depth):
            mine = value[:, chosen & (layers == layer)]
            columns.append(mine.mean(axis=1) if mine.shape[1] else np.full(len(value), np.nan))
        return np.stack(columns, axis=1)

    def complete(self, statistic: str, roles: Sequence[str] | None = None) -> tuple[Whole, Floats]:
        """The steps and values of those looks that have the statistic, finite, in every layer.

        Args:
            statistic, roles: as in `layerwise`.

        Returns:
            (n,) int64 and (n, depth) float64, n <= T.

        Raises:
            ValueError: as `layerwise`, or a layer never has the statistic.
        """
        value = self.layerwise(statistic, roles)
        known = np.isfinite(value)
        if not known.any(axis=0).all():
            raise ValueError(f"layer {int(np.argmin(known.any(axis=0)))} has no {statistic} at any look")
        whole = known.all(axis=1)
        return self.steps[whole], value[whole]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Trajectories:
        """The exact looks of a run on disk: a training run's folder, or what a ParquetSink wrote.

        A look counts where every matrix in it was looked at exactly. Runs that are still being written can
        be read.

        Raises:
            spectral_fast.monitor.parquet.RunError: there is no run at the path.
            ValueError: the run has no exact look, or no matrix in a layer.
        """
        from spectral_fast.monitor.parquet import read_run

        looks = Path(path) / "looks"
        statistics = scalar_fields()
        of_matrix = ["step", "kind", "name", "layer", "role"]
        table = read_run(looks if looks.is_dir() else path, columns=[*of_matrix, *statistics])
        exact = table["kind"].to_numpy(zero_copy_only=False) == "exact"
        at = table["step"].to_numpy()
        every_name = table["name"].to_numpy(zero_copy_only=False)
        steps = np.array(
            [
                step
                for step in np.unique(at[exact])
                if set(every_name[(at == step) & exact]) == set(every_name[at == step])
            ],
            dtype=np.int64,
        )
        rows = np.flatnonzero(exact & np.isin(at, steps))
        if not len(rows):
            raise ValueError(f"{path}: no look of this run is exact; train further, or with every=25")
        first = {name: row for row, name in reversed([(row, every_name[row]) for row in rows])}
        names = tuple(dict.fromkeys(every_name[rows]))
        row_of = np.searchsorted(steps, at[rows])
        column_of = np.array([names.index(name) for name in every_name[rows]])
        values = {}
        for statistic in statistics:
            value = np.full((len(steps), len(names)), np.nan)
            value[row_of, column_of] = table[statistic].to_numpy(zero_copy_only=False)[rows]
            values[statistic] = value
        return cls(
            steps=steps,
            names=names,
            layers=tuple(table["layer"][first[name]].as_py() for name in names),
            roles=tuple(table["role"][first[name]].as_py() for name in names),
            values=values,
        )

    @classmethod
    def of_checkpoints(cls, checkpoints: Mapping[int, str | os.PathLike[str]]) -> Trajectories:
        """Analyse the checkpoints of one run, without embeddings, pooler and head.

        Args:
            checkpoints: optimizer step -> file or folder, as
                :func:`spectral_fast.models.open_checkpoint` takes it.

        Raises:
            spectral_fast.models.CheckpointError: one of them cannot be read.
            ValueError: there are none, or their matrices are not the same.
        """
        if not checkpoints:
            raise ValueError("of_checkpoints needs at least one checkpoint")
        statistics = scalar_fields()
        steps = sorted(checkpoints)
        looks: list[list[list[float]]] = []
        names: tuple[str, ...] = ()
        for step in steps:
            matrices = select(open_checkpoint(Path(checkpoints[step])).matrices(), embeddings=False)
            here = tuple(matrix.name for matrix in matrices)
            if looks and here != names:
                odd = sorted(set(here) ^ set(names)) or ["their order"]
                raise ValueError(
                    f"{checkpoints[step]} and {checkpoints[steps[0]]} are not of one model: {odd[0]} differs"
                )
            names = here
            found = [spectral_stats(matrix.tensor) for matrix in matrices]
            looks.append([[float(getattr(stats, name)) for name in statistics] for stats in found])
        values = np.array(looks, dtype=np.float64)
        return cls(
            steps=np.array(steps, dtype=np.int64),
            names=names,
            layers=tuple(matrix.layer for matrix in matrices),
            roles=tuple(matrix.role for matrix in matrices),
            values={name: values[:, :, i] for i, name in enumerate(statistics)},
        )
