"""Taking out more and more blocks, in the order that alpha tells and in others, and what perplexity does.

Orders, each a row of blocks of which the first k go:

    <exponent>          the lightest tail first, which is the largest alpha or alpha_hill, or the smallest
                        alpha_ranksize
    last-n, first-n     from the end, from the start
    best, worst         the block that by itself is the least important first, and the most important
    random              permutations

<exponent>-protected and random-protected leave the first and the last block alone. The direction was decided
beforehand and never looks at the loss: heavy tails are what training makes (Martin and Mahoney 2021) and what
pruning by alpha keeps elsewhere (AlphaPruning, Lu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_fast.lifecycle.adapters import Decoder
from spectral_fast.lifecycle.evaluations import Evaluations, Floats, Removed
from spectral_fast.lifecycle.importance import HEAVIER_TAIL, WHOLE, Importance
from spectral_fast.lifecycle.outputs import plain
from spectral_fast.lifecycle.perplexity import EvaluationText, Progress, evaluate

RESAMPLES = 2000
CONFIDENCE = 0.95
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PROTECTED = "-protected"

Order = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Curve:
    """Delta perplexity of one kind of order, PPL(k blocks out) - PPL(whole), k = 1 ... K.

    Attributes:
        orders: one, or one for each seed; each of at most K blocks.
        delta: (orders, K), NaN beyond the end of an order.
        error: (orders, K) standard error over windows of the text.
    """

    orders: tuple[Order, ...]
    delta: Floats
    error: Floats

    @property
    def mean(self) -> Floats:
        """(K,) over the orders."""
        return np.asarray(self.delta.mean(axis=0), dtype=np.float64)

    @property
    def quantiles(self) -> Floats:
        """(len(QUANTILES), K) over the orders."""
        return np.asarray(np.quantile(self.delta, QUANTILES, axis=0), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Ratio:
    """A ratio of two delta perplexities, (K,), with a 95 % bootstrap interval over windows of the text.

    NaN where the lower one is not above 0: then there is no loss to compare with. The interval reaches
    infinity where that is so in some resamples; those in which neither is above 0 are left out.
    """

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, eq=False)
class Pruning:
    """What taking out up to K of L blocks does.

    Attributes:
        perplexity: of the whole model.
        layers: L.
        curves: by the name of the order.
        last_over: by spectral order: last-n's delta over its.
        worst_over_best: their deltas' ratio.
        p_random: by spectral order, (K,): (1 + random orders that cost no more) / (1 + random orders), of
            those with the same blocks protected. Small where alpha chooses better than chance. NaN beyond its
            end.
    """

    perplexity: float
    layers: int
    curves: Mapping[str, Curve]
    last_over: Mapping[str, Ratio]
    worst_over_best: Ratio
    p_random: Mapping[str, Floats]

    @property
    def most(self) -> int:
        """K."""
        return int(self.worst_over_best.value.shape[0])

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not a number is null."""
        return {
            "perplexity": self.perplexity,
            "layers": self.layers,
            "curves": {name: _curve_data(curve) for name, curve in self.curves.items()},
            "last_n_over": {name: _ratio_data(ratio) for name, ratio in self.last_over.items()},
            "worst_over_best": _ratio_data(self.worst_over_best),
            "p_random": {name: plain(p) for name, p in self.p_random.items()},
        }


def removal_orders(importance: Importance, *, most: int, seeds: int) -> dict[str, tuple[Order, ...]]:
    """The orders by name, cut after ``most`` blocks; equal values: the deeper block goes first.

    Random orders come from the seeds 0 ... seeds - 1. An order without any block to remove is left out.
    """
    depth = importance.depth
    every, inner = range(depth), range(1, depth - 1)
    orders: dict[str, tuple[Order, ...]] = {}
    for name, heavier in HEAVIER_TAIL.items():
        heaviness = importance.alphas[name] * (-1 if heavier == "smaller" else 1)
        orders[name] = (_ascending(heaviness, every),)
        orders[name + PROTECTED] = (_ascending(heaviness, inner),)
    orders["last-n"] = (tuple(reversed(every)),)
    orders["first-n"] = (tuple(every),)
    orders["best"] = (_ascending(importance.importance, every),)
    orders["worst"] = (_ascending(-importance.importance, every),)
    for name, blocks in (("random", every), ("random" + PROTECTED, inner)):
        orders[name] = tuple(
            tuple(np.random.default_rng(seed).permutation(blocks).tolist()) for seed in range(seeds)
        )
    return {name: tuple(order[:most] for order in rows) for name, rows in orders.items() if rows[0]}


def measure_pruning(
    decoder: Decoder,
    text: EvaluationText,
    importance: Importance,
    evaluations: Evaluations,
    *,
    most: int | None = None,
    seeds: int = 20,
    progress: Progress | None = None,
) -> Pruning:
    """Evaluate every order of :func:`removal_orders`.

    Args:
        decoder, text, evaluations: as :func:`~spectral_fast.lifecycle.importance.measure_importance` had
            them.
        importance: what it found.
        most: K, the blocks to remove at most; None takes half of them.
        seeds: how many random orders of each kind.

    Raises:
        ValueError: most not in [1, L - 1], seeds below 1, or what `evaluate` raises.
    """
    depth = decoder.depth
    most = max(1, depth // 2) if most is None else most
    if not 1 <= most < depth:
        raise ValueError(
            f"between 1 and {depth - 1} of the model's {depth} blocks can be removed, not {most}"
        )
    if seeds < 1:
        raise ValueError(f"random orders need at least one seed, not {seeds}")
    orders = removal_orders(importance, most=most, seeds=seeds)
    sets = [
        frozenset(order[:count])
        for rows in orders.values()
        for order in rows
        for count in range(1, len(order) + 1)
    ]
    nats = evaluate(decoder, text, [WHOLE, *sets], evaluations, progress)
    curves = {name: _curve(rows, nats, most) for name, rows in orders.items()}
    # The same resampled windows for every set: what is easy or hard text is so for all.
    windows = len(nats[WHOLE])
    drawn = np.random.default_rng(0).integers(windows, size=(RESAMPLES, windows))
    spectral = [name for name in orders if name.removesuffix(PROTECTED) in HEAVIER_TAIL]
    deltas = {
        name: _resampled(orders[name][0], nats, drawn) for name in (*spectral, "last-n", "best", "worst")
    }
    return Pruning(
        perplexity=float(np.exp(nats[WHOLE].mean())),
        layers=depth,
        curves=curves,
        last_over={name: _ratio(curves, deltas, "last-n", name) for name in spectral},
        worst_over_best=_ratio(curves, deltas, "worst", "best"),
        p_random={name: _p_random(curves, name) for name in spectral},
    )


def _ascending(values: Floats, blocks: range) -> Order:
    return tuple(sorted(blocks, key=lambda block: (values[block], -block)))


def _curve(orders: tuple[Order, ...], nats: Mapping[Removed, Floats], most: int) -> Curve:
    delta = np.full((len(orders), most), np.nan)
    error = np.full((len(orders), most), np.nan)
    whole = nats[WHOLE]
    for row, order in enumerate(orders):
        for count in range(1, len(order) + 1):
            pruned = nats[frozenset(order[:count])]
            before, after = np.exp(whole.mean()), np.exp(pruned.mean())
            delta[row, count - 1] = after - before
            # First order in the windows' losses, which both perplexities share.
            spread = (after * pruned - before * whole).std(ddof=1)
            error[row, count - 1] = spread / np.sqrt(len(whole))
    return Curve(orders, delta, error)


def _resampled(order: Order, nats: Mapping[Removed, Floats], drawn: NDArray[np.int64]) -> Floats:
    """(len(order), resamples) delta perplexities."""
    whole = np.exp(nats[WHOLE][drawn].mean(axis=1))
    rows = [np.exp(nats[frozenset(order[:k])][drawn].mean(axis=1)) for k in range(1, len(order) + 1)]
    return np.stack(rows) - whole


def _ratio(curves: Mapping[str, Curve], deltas: Mapping[str, Floats], upper: str, lower: str) -> Ratio:
    most = curves[upper].delta.shape[1]
    value, low, high = (np.full(most, np.nan) for _ in range(3))
    tail = (1 - CONFIDENCE) / 2
    for k, (above, below) in enumerate(zip(deltas[upper], deltas[lower], strict=False)):
        one, other = curves[upper].delta[0, k], curves[lower].delta[0, k]
        if other <= 0:
            continue
        value[k] = one / other
        some = (above > 0) | (below > 0)
        ratios = np.where(below > 0, above / np.where(below > 0, below, 1), np.inf)[some]
        # Between order statistics nothing is interpolated: infinities would make NaN of it.
        low[k], high[k] = np.quantile(ratios, [tail, 1 - tail], method="inverted_cdf")
    return Ratio(value, low, high)


def _p_random(curves: Mapping[str, Curve], name: str) -> Floats:
    other = curves["random" + PROTECTED if name.endswith(PROTECTED) else "random"].delta
    mine = curves[name].delta[0]
    p = (1 + (other <= mine).sum(axis=0)) / (1 + len(other))
    found: Floats = np.where(np.isnan(mine), np.nan, p)
    return found


def _curve_data(curve: Curve) -> dict[str, Any]:
    data = {
        "orders": [list(order) for order in curve.orders],
        "delta_perplexity": plain(curve.delta),
        "error": plain(curve.error),
    }
    if len(curve.orders) > 1:
        quantiles = {str(q): plain(row) for q, row in zip(QUANTILES, curve.quantiles, strict=True)}
        data |= {"mean": plain(curve.mean), "quantiles": quantiles}
    return data


def _ratio_data(ratio: Ratio) -> dict[str, Any]:
    return {"value": plain(ratio.value), "low": plain(ratio.low), "high": plain(ratio.high)}
