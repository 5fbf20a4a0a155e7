"""What one look at a model found: the record that every sink receives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from numpy import float32
from numpy.typing import NDArray

# exact: all singular values; tracked: followed from the last exact look.
Kind = Literal["exact", "tracked"]

# The statistics that every kind of look gives; in a tracked one they have a standard error each.
ESTIMATED = ("spectral_norm", "stable_rank", "alpha", "alpha_hill", "alpha_ranksize")


@dataclass(frozen=True, eq=False)
class MatrixLook:
    """One matrix in one look.

    Attributes:
        name, layer, role, rows, cols, dtype: as in :class:`spectral_fast.WeightMatrix`; the dtype by
            its name, such as "float32".
        kind: how its statistics came about.
        statistics: fields of :class:`spectral_fast.SpectralStats` by name; what a look of this kind does not
            give is missing.
        errors: standard error of those of them that are estimates, by name: what they may be away from an
            exact look at the same weights. (``statistics["alpha_stderr"]`` is another thing, the sampling
            error of the fit.)
        held: names of the statistics that are the last exact look's, carried over.
        svdvals: singular values, descending, float32: all of them in an exact look, else the leading ones.
    """

    name: str
    layer: int | None
    role: str
    rows: int
    cols: int
    dtype: str
    kind: Kind
    statistics: Mapping[str, float]
    errors: Mapping[str, float]
    held: tuple[str, ...]
    svdvals: NDArray[float32]


@dataclass(frozen=True, eq=False)
class Look:
    """One look at a model.

    Attributes:
        step: optimizer steps made before it; 0 is the model as it was handed over.
        kind: "exact" where every matrix was looked at exactly, else "tracked".
        time: when it ended, seconds since the epoch.
        seconds: what it cost, wall time on the rank that spent most.
        share: of the wall time since the monitor began, what all looks together have cost.
        every, track_every: the intervals in force after it, in steps; 0 stands for never.
        matrices: in the model's order.
    """

    step: int
    kind: Kind
    time: float
    seconds: float
    share: float
    every: int
    track_every: int
    matrices: Sequence[MatrixLook]
