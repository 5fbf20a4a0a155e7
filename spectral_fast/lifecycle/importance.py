"""How much each block matters: what the loss on held-out text gains when it is taken out.

    I_i = ln PPL(without block i) - ln PPL(whole)        nats a token

and whether alpha tells it: Spearman's rho of I with the layer means of each of the three exponents, and with
depth.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_fast.lifecycle.adapters import Decoder
from spectral_fast.lifecycle.correlation import RankCorrelation, rank_correlation
from spectral_fast.lifecycle.evaluations import Evaluations, Floats
from spectral_fast.lifecycle.outputs import plain
from spectral_fast.lifecycle.perplexity import EvaluationText, Progress, evaluate
from spectral_fast.lifecycle.trajectories import Trajectories

# The three exponents, and which of their values say that a tail is heavier. For sigma_k ~ k^-b the first two
# tend to 1 + 1/(2b), the last to b.
HEAVIER_TAIL = {"alpha": "smaller", "alpha_hill": "smaller", "alpha_ranksize": "larger"}
DEPTH = "depth"

WHOLE: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Importance:
    """The importance of each of L blocks.

    Attributes:
        loss: of the whole model, nats a token.
        importance: (L,) what it gains without each block, nats a token.
        error: (L,) standard error of that over windows of the text: another text would give another value.
        alphas: exponent by name -> (L,), the mean over each block's matrices.
        correlations: by exponent, and "depth": the importance's with it.
    """

    loss: float
    importance: Floats
    error: Floats
    alphas: Mapping[str, Floats]
    correlations: Mapping[str, RankCorrelation]

    @property
    def depth(self) -> int:
        return len(self.importance)

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not a number is null."""
        data: dict[str, Any] = plain(self)
        return data


def layer_alphas(checkpoint: str | os.PathLike[str]) -> dict[str, Floats]:
    """Each exponent by layer, (L,): the mean over all matrices of the layer, each counted once.

    Args:
        checkpoint: as :func:`spectral_fast.models.open_checkpoint` takes it.

    Raises:
        spectral_fast.models.CheckpointError: it cannot be read.
        ValueError: a layer has a matrix without a finite exponent, or none has a layer number.
    """
    look = Trajectories.of_checkpoints({0: checkpoint})
    alphas = {name: look.layerwise(name)[0] for name in HEAVIER_TAIL}
    for name, values in alphas.items():
        if not np.isfinite(values).all():
            layer = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"{checkpoint}: layer {layer} has no finite {name}; look at its weights")
    return alphas


def measure_importance(
    decoder: Decoder,
    text: EvaluationText,
    alphas: Mapping[str, Floats],
    evaluations: Evaluations,
    progress: Progress | None = None,
) -> Importance:
    """Take each block out in turn and evaluate; see :func:`spectral_fast.lifecycle.perplexity.evaluate`.

    Args:
        decoder: a model of at least two blocks.
        text: held-out text.
        alphas: exponents by layer, as :func:`layer_alphas` gives them.
        evaluations: what is in there is not evaluated again.

    Raises:
        ValueError: fewer than two blocks, alphas of another depth, or what `evaluate` raises.
    """
    depth = decoder.depth
    if depth < 2:
        raise ValueError(f"the model has {depth} block: importance compares at least two")
    for name, values in alphas.items():
        if values.shape != (depth,):
            raise ValueError(f"{name} has shape {values.shape}, the model {depth} blocks")
    without = [frozenset((block,)) for block in range(depth)]
    nats = evaluate(decoder, text, [WHOLE, *without], evaluations, progress)
    gains = np.stack([nats[removed] - nats[WHOLE] for removed in without])
    importance: Floats = gains.mean(axis=1)
    error: Floats = gains.std(axis=1, ddof=1) / math.sqrt(gains.shape[1])
    over = {**alphas, DEPTH: np.arange(depth, dtype=np.float64)}
    correlations = {name: rank_correlation(values, importance) for name, values in over.items()}
    return Importance(float(nats[WHOLE].mean()), importance, error, dict(alphas), correlations)
