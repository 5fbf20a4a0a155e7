"""A look as named numbers, for loggers that draw one chart a name.

``spectra_<statistic>/<role>/layer<NN>``: loggers make one group of charts of what stands before the first
slash, so a statistic's charts stand together, by role and then by depth, where neighbours can be compared.
``spectra_<statistic>/<role>/mean`` is the mean over the role, ``spectra_cost/...`` what looking costs.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from spectral_fast.monitor.record import Look, MatrixLook
from spectral_fast.stats import scalar_fields


def require_statistics(names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple.

    Raises:
        ValueError: one of them is no field of SpectralStats with a number a matrix.
    """
    unknown = [name for name in names if name not in scalar_fields()]
    if unknown or isinstance(names, str):
        raise ValueError(
            f"statistics={names!r}: must be a sequence of field names of SpectralStats: "
            f"{', '.join(scalar_fields())}"
        )
    return tuple(names)


def metrics(look: Look, statistics: Sequence[str]) -> dict[str, float]:
    """The numbers that a look found, by name.

    What is missing, NaN or infinite has no entry, nor has what was carried over from an earlier look: a chart
    then has a gap, or a longer line between two values that were computed.
    """
    places = Counter((matrix.role, matrix.layer) for matrix in look.matrices)
    of_role: dict[str, list[float]] = defaultdict(list)
    named = {}
    for matrix in look.matrices:
        place = _place(matrix, alone=places[matrix.role, matrix.layer] == 1)
        for statistic in statistics:
            value = float(matrix.statistics.get(statistic, math.nan))
            if math.isfinite(value) and statistic not in matrix.held:
                named[f"spectra_{statistic}/{place}"] = value
                of_role[f"spectra_{statistic}/{matrix.role}/mean"].append(value)
    named |= {name: math.fsum(values) / len(values) for name, values in of_role.items() if len(values) > 1}
    cost = {name: getattr(look, name) for name in ("seconds", "share", "every", "track_every")}
    return named | {f"spectra_cost/{name}": float(value) for name, value in cost.items()}


def _place(matrix: MatrixLook, *, alone: bool) -> str:
    layer = "" if matrix.layer is None else f"/layer{matrix.layer:02d}"
    # Experts share role and layer, and what stands in no layer has nothing but its name.
    return f"{matrix.role}{layer}" if alone and layer else f"{matrix.role}{layer}/{matrix.name}"
