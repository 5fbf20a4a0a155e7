"""What is trained and how: the two configurations that a run consists of, and sizes by name."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from spectral_fast.models.shapes import MODELS

# Of the custom models, by name; ours, as their widths are.
HEAD_WIDTH = {"30m": 32, "124m": 64, "282m": 64}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer, see :class:`spectral_fast.lifecycle.gpt.GPT`.

    Attributes:
        layers: blocks.
        width: of the residual stream; the MLP is four times as wide.
        heads: attention heads a block; they divide the width.
        context: tokens the model sees at most.
        vocabulary: rows of the embedding, at least the tokens of the corpus.

    Raises ValueError for a number below 1 and for heads that do not divide the width.
    """

    layers: int
    width: int
    heads: int
    context: int = 1024
    vocabulary: int = 50304

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _require_whole(self, name, value, 1)
        if self.width % self.heads:
            raise ValueError(f"ModelConfig: {self.heads} heads do not divide the width {self.width}")

    @property
    def parameters(self) -> int:
        """How many numbers are trained: 12 width² a block, the embeddings, and the norms."""
        blocks = self.layers * (12 * self.width**2 + 4 * self.width)
        return blocks + (self.vocabulary + self.context + 2) * self.width


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained, see :func:`spectral_fast.lifecycle.training.train`.

    Attributes:
        steps: optimizer steps.
        batch: sequences a step, over all ranks together.
        lr: the largest learning rate, at the end of the warm-up.
        final_lr: the last step's, as a share of it.
        warm_up: steps in which the learning rate rises linearly.
        weight_decay: AdamW's, on matrices (embeddings too) and not on the norms' vectors.
        clip: the norm that gradients are scaled down to.
        seed: of the first weights and, as another stream, of the order of the data.
        every: steps between looks; the first is at step 0.

    Raises ValueError for numbers out of range.
    """

    steps: int
    batch: int = 16
    lr: float = 1e-3
    final_lr: float = 0.1
    warm_up: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    every: int = 25

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("warm_up", 0), ("seed", 0), ("every", 1)):
            _require_whole(self, name, getattr(self, name), least)
        if self.seed >= 2**32:
            raise ValueError(f"TrainConfig: seed must be below 2**32, got {self.seed}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"TrainConfig: {name} must be positive, got {getattr(self, name)!r}")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"TrainConfig: final_lr must be a share of lr in [0, 1], got {self.final_lr!r}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"TrainConfig: weight_decay must be at least 0, got {self.weight_decay!r}")

    def lr_at(self, step: int) -> float:
        """The learning rate of the step after ``step`` of them, for step in [0, steps).

        Linear to ``lr`` in the first ``warm_up`` steps, then half a cosine to ``final_lr * lr`` at the last.
        """
        if step < self.warm_up:
            return self.lr * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - 1 - self.warm_up)
        share = self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
        return self.lr * share


def differences(ours: ModelConfig | TrainConfig, theirs: dict[str, Any]) -> list[str]:
    """What is not the same in a configuration that was saved with ``asdict``, one sentence a field."""
    return [
        f"{field.name} is {getattr(ours, field.name)!r}, there it is {theirs.get(field.name)!r}"
        for field in fields(ours)
        if getattr(ours, field.name) != theirs.get(field.name)
    ]


def _require_whole(config: object, name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{type(config).__name__}: {name} must be a whole number >= {least}, got {value!r}")


def _custom(name: str) -> ModelConfig:
    shape = MODELS[f"custom-{name}"]
    return ModelConfig(shape.layers, shape.width, heads=shape.width // HEAD_WIDTH[name])


# The three of arXiv 2604.22778 without public checkpoints, and thin ones for a CPU, their depths about
# equally far apart in log L.
SIZES = {
    **{name: _custom(name) for name in HEAD_WIDTH},
    **{
        f"thin-{layers}": ModelConfig(layers=layers, width=96, heads=3, context=128, vocabulary=1024)
        for layers in (2, 4, 6, 10, 16)
    },
}
