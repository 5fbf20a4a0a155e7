"""A run as arrays over steps and matrices, for pictures and tables."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spectral_fast.models.roles import ROLE_ORDER
from spectral_fast.monitor.parquet import read_run, unsealed
from spectral_fast.monitor.record import ESTIMATED

if TYPE_CHECKING:
    import pyarrow as pa

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

# Half the width of a 95 % interval, in standard errors.
NORMAL_95 = 1.96


@dataclass(frozen=True)
class Matrix:
    """One matrix of the model, as in :class:`spectral_fast.WeightMatrix`."""

    name: str
    layer: int | None
    role: str
    rows: int
    cols: int


@dataclass(frozen=True, eq=False)
class Statistic:
    """One statistic over the run; arrays of shape (steps, matrices), NaN where no look gave it.

    Attributes:
        value: of the exact look where a step has one of each kind.
        error: its standard error, NaN where none is stated.
        held: whether the value was carried over from an earlier look.
    """

    value: Floats
    error: Floats
    held: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Audit:
    """How far an estimate was from the exact value, wherever an exact look follows another kind.

    Arrays of shape (pairs,).

    Attributes:
        gap: steps from one look to the other.
        difference: |estimate - exact| / |exact|.
        interval: half the width of the estimate's 95 % interval / |exact|; NaN where no error is stated.
        held: whether the estimate was carried over from an earlier exact look.
    """

    gap: Whole
    difference: Floats
    interval: Floats
    held: NDArray[np.bool_]


class History:
    """What a run holds.

    Attributes:
        matrices: by role, then layer, then as the model has them.
        steps: those with a look, ascending.
        exact, other: (steps,), whether a step has exact rows, and rows of another kind.
        seconds, share, every, track_every: (steps,), of the last look at each step.
        unsealed: whether looks are still in a journal, so that the run is going on or was killed.

    Raises:
        RunError: as :func:`spectral_fast.monitor.parquet.read_run`.
    """

    def __init__(self, run: str | os.PathLike[str]) -> None:
        self.unsealed = unsealed(run)
        self._rows = read_run(run, _COLUMNS)
        self._step: Whole = self._rows["step"].to_numpy()
        self._exact_row: NDArray[np.bool_] = self._rows["kind"].to_numpy() == "exact"
        self.matrices, self._matrix = _matrices(self._rows)
        self.steps, self._at = np.unique(self._step, return_inverse=True)
        self.exact, self.other = (
            np.bincount(self._at[rows], minlength=len(self.steps)) > 0
            for rows in (self._exact_row, ~self._exact_row)
        )
        self.seconds, self.share, self.every, self.track_every = map(self._of_step, _OF_LOOK)

    def statistic(self, name: str) -> Statistic:
        """A scalar field of SpectralStats over the run."""
        shape = len(self.steps), len(self.matrices)
        value, error, held = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, dtype=bool)
        numbers, errors, carried = self._columns(name)
        for rows in (~self._exact_row, self._exact_row):  # exact ones last, over the others
            rows = rows & ~np.isnan(numbers)
            place = self._at[rows], self._matrix[rows]
            value[place], error[place], held[place] = numbers[rows], errors[rows], carried[rows]
        return Statistic(value, error, held)

    def spectra(self, matrix: int) -> list[tuple[int, NDArray[np.float32]]]:
        """(step, singular values) of every exact look at a matrix."""
        rows = np.flatnonzero(self._exact_row & (self._matrix == matrix))
        values = self._rows["svdvals"]
        return [(int(self._step[row]), values[int(row)].values.to_numpy()) for row in rows]

    def audit(self, name: str) -> Audit:
        """A statistic of the last look before each exact one against that; see :class:`Audit`."""
        order = np.lexsort((self._exact_row, self._step, self._matrix))
        before, after = order[:-1], order[1:]
        pair = self._matrix[before] == self._matrix[after]
        pair &= ~self._exact_row[before] & self._exact_row[after]
        numbers, errors, held = self._columns(name)
        pair &= errors[before] != 0  # a tracker looks at small matrices exactly: nothing was estimated
        before, after = before[pair], after[pair]
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = np.abs(numbers[before] - numbers[after]) / np.abs(numbers[after])
            interval = NORMAL_95 * errors[before] / np.abs(numbers[after])
        known = np.isfinite(difference)
        gap = self._step[after] - self._step[before]
        return Audit(gap[known], difference[known], interval[known], held[before][known])

    def _columns(self, name: str) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Value, standard error and whether it was held, a row each."""
        import pyarrow.compute as pc

        numbers = self._rows[name].to_numpy()
        errors = self._rows[f"{name}_error"].to_numpy()
        lists = self._rows["held"].combine_chunks()
        held = np.zeros(len(numbers), dtype=bool)
        named = pc.equal(pc.list_flatten(lists), name).to_numpy(zero_copy_only=False)
        held[pc.list_parent_indices(lists).to_numpy()[named]] = True
        return numbers, errors, held

    def _of_step(self, name: str) -> Floats:
        values = np.zeros(len(self.steps))
        values[self._at] = self._rows[name].to_numpy()
        return values


_OF_LOOK = ("seconds", "share", "every", "track_every")
_COLUMNS = (
    "step", "kind", *_OF_LOOK, "name", "layer", "role", "rows", "cols", "held", "svdvals",
    *ESTIMATED, *(f"{name}_error" for name in ESTIMATED),
)  # fmt: skip


def _matrices(rows: pa.Table) -> tuple[list[Matrix], Whole]:
    """The matrices in reading order, and which one each row is of."""
    encoded = rows["name"].combine_chunks().dictionary_encode()
    code = encoded.indices.to_numpy()
    _, first = np.unique(code, return_index=True)
    about = rows.select(["name", "layer", "role", "rows", "cols"]).take(first).to_pylist()
    found = [Matrix(**one) for one in about]
    order = sorted(range(len(found)), key=lambda i: (*_reading_order(found[i]), first[i]))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return [found[i] for i in order], place[code]


def _reading_order(matrix: Matrix) -> tuple[int, str, int]:
    known = matrix.role in ROLE_ORDER
    role = ROLE_ORDER.index(matrix.role) if known else len(ROLE_ORDER)
    return role, "" if known else matrix.role, -1 if matrix.layer is None else matrix.layer
