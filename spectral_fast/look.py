"""One tracked look: leading values, and sums over what is behind them, from a product or a few with A^T A.

With M = A^T A, V the leading vectors of now and P = I - V V^T (without the last of them, which is drawn anew
for every look: spectral_fast.tracker), the product M [V, P Omega] gives

    the leading values    spectral_fast.subspace; where what is pending is above a limit, V is multiplied
                          again
    sum lambda^2          tr M^2 = |M V|_F^2 + tr P M^2 P, the last the mean of |M P omega|^2 (Hutchinson
                          1990). And of that only what a line cannot explain: tr P M P is known from the
                          energy, tr P too, and lambda^2 ~ a lambda + b over the bulk takes most of
                          the variance along (control variates)
    drift                 |P (M - M_0) omega| / |P M omega|, M_0 of the exact look, for probes without its
                          leading directions

Here in plain torch, for products that come from anywhere. csrc/cpu/look.inl is the same in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_fast.subspace import Ritz, ritz

Products = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""X (B, n, s) and which matrices of the batch, None: all, to (A^T A X, |A|_F^2)."""


class Probes(NamedTuple):
    """What is kept of the exact look for sums over the bulk; B matrices of n columns.

    Attributes:
        vectors: (B, n, p), the last d of them for the drift.
        reference: (B, n, d), M_0 times those.
        line: (B, 2) float64, a and b.
    """

    vectors: Tensor
    reference: Tensor
    line: Tensor


class Repeat(NamedTuple):
    """When there is another product, most_products at most.

    Where what is pending is above limit for the first value, or above 20 times that for one of the first
    `watched`.
    """

    limit: float
    watched: int
    most_products: int


class Look(NamedTuple):
    """What a look at B matrices of n columns tells.

    Attributes:
        squares, pending: (B, s) float64, as in subspace.Ritz.
        vectors: (B, n, s), for the next look.
        energy: (B,) float64, |A|_F^2.
        bulk: (B, 2) float64, sum lambda^2 as the probes have it, and the drift; NaN without probes.
    """

    squares: Tensor
    pending: Tensor
    vectors: Tensor
    energy: Tensor
    bulk: Tensor


def look(
    products: Products,
    V: Tensor,
    fresh: Tensor,
    probes: Probes | None,
    repeat: Repeat,
) -> Look:
    """A look from V (B, n, s), independent columns, with probes orthonormal but for rounding.

    fresh: (B, n) standard normal: the next last vector, once the others are taken out.
    """
    X = V if probes is None else torch.cat([V, outside(V[..., :-1], probes.vectors)], -1)
    Z, energy = products(X, None)
    found = first = ritz(V, Z[..., : V.shape[-1]])
    for _ in range(repeat.most_products - 1):
        pending = found.pending[:, : repeat.watched]
        late = (pending[:, 0] > repeat.limit) | (pending > 20 * repeat.limit).any(-1)
        if not bool(late.any()):
            break
        where = late.nonzero()[:, 0]
        V_late = found.vectors[where]
        again = ritz(V_late, products(V_late, None if len(where) == len(late) else where)[0])
        found = Ritz(*(old.index_copy(0, where, new) for old, new in zip(found, again, strict=True)))

    kept, last = found.vectors[..., :-1], fresh[..., None]
    last = last - kept @ (kept.mT @ last)
    vectors = torch.cat([kept, torch.nn.functional.normalize(last, dim=-2)], -1)
    bulk = torch.full((*energy.shape, 2), torch.nan, dtype=torch.float64, device=V.device)
    if probes is not None:
        squares = sum_of_squares(X, Z, probes, energy, first.traces)
        bulk = torch.stack([squares, _drift(V[..., :-1], Z, probes)], -1)
    return Look(found.squares, found.pending, vectors, energy, bulk)


def outside(V: Tensor, X: Tensor) -> Tensor:
    """P X for the orthonormal columns of V."""
    return X - V @ (V.mT @ X)


def sum_of_squares(X: Tensor, Z: Tensor, probes: Probes, energy: Tensor, traces: Tensor) -> Tensor:
    """(B,): sum lambda^2 as the probes have it, from X = [V, P Omega] and Z = M X.

    energy: |A|_F^2. traces: (B, 2), of V^T M V and V^T M^2 V without the last vector.
    """
    traced, line = probes.vectors.shape[-1] - probes.reference.shape[-1], probes.line
    split = X.shape[-1] - probes.vectors.shape[-1]
    before, images = (Y[..., split : split + traced] for Y in (X, Z))
    inside, directions = traces.unbind(-1)
    off_trace = (before * images).sum((-1, -2), dtype=torch.float64) / traced - (energy - inside)
    off_size = _energy(before) / traced - (X.shape[-2] - split + 1)
    return directions + _energy(images) / traced - line[:, 0] * off_trace - line[:, 1] * off_size


def _drift(V: Tensor, Z: Tensor, probes: Probes) -> Tensor:
    count = probes.reference.shape[-1]
    # The probes of the drift as they are kept: what P took out of them comes back.
    overlap = V.mT @ probes.vectors[..., -count:]
    image = Z[..., -count:] + Z[..., : V.shape[-1]] @ overlap
    change, bulk = outside(V, torch.cat([image - probes.reference, image], -1)).chunk(2, -1)
    return (_energy(change) / _energy(bulk)).sqrt()


def _energy(X: Tensor) -> Tensor:
    return X.square().sum((-1, -2), dtype=torch.float64)
