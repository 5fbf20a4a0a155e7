"""The nine models: spectra of those on disk, and what a look costs at the sizes of the others.

A model that is not on disk has no spectra to speak of: only its shapes are used, with random weights, and
only to time a look at them.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import linregress
from scipy.stats import t as student

from spectral_fast.analyze import select
from spectral_fast.lifecycle.evaluations import Floats
from spectral_fast.lifecycle.importance import HEAVIER_TAIL
from spectral_fast.lifecycle.trajectories import Trajectories
from spectral_fast.models import CheckpointError, open_checkpoint
from spectral_fast.models.shapes import ModelShape
from spectral_fast.stats import spectral_stats

STATISTICS = ("stable_rank", *HEAVIER_TAIL)
ALL_ROLES = "all"
CONFIDENCE = 0.95
_REPEATS = 3

# Where the Hugging Face hub has them. The custom models are on no hub.
_REPOSITORIES = {
    "gpt2-124m": ("openai-community/gpt2", "gpt2"),
    "gpt2-355m": ("openai-community/gpt2-medium", "gpt2-medium"),
    "gpt2-774m": ("openai-community/gpt2-large", "gpt2-large"),
    "pythia-160m": ("EleutherAI/pythia-160m",),
    "pythia-410m": ("EleutherAI/pythia-410m",),
    "pythia-1b": ("EleutherAI/pythia-1b",),
}
_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


@dataclass(frozen=True)
class DepthGradient:
    """A statistic of one role over depth.

    Attributes:
        role: "all" for the mean over each layer's block matrices.
        mean: over the layers.
        slope: of the least-squares line over relative depth, 0 for the first layer and 1 for the last.
        low, high: its 95 % interval with L - 2 degrees of freedom, which takes the layers' deviations from
            the line for independent; NaN for two layers.
    """

    role: str
    statistic: str
    mean: float
    slope: float
    low: float
    high: float


def cached_checkpoint(model: str, cache: Path | None = None) -> Path | None:
    """The folder of a model in the Hugging Face cache (None: the user's own); nothing is downloaded.

    Raises:
        ImportError: huggingface_hub, which knows the cache's layout, is not installed.
    """
    from huggingface_hub import try_to_load_from_cache

    for repository in _REPOSITORIES.get(model, ()):
        for name in _WEIGHTS:
            file = try_to_load_from_cache(repository, name, cache_dir=cache)
            if isinstance(file, str):  # not so where the cache only knows that there is no such file
                return Path(file).parent
    return None


def can_read_cache() -> bool:
    return importlib.util.find_spec("huggingface_hub") is not None


def measure_model(shape: ModelShape, checkpoint: Path) -> Trajectories:
    """One exact look, at step 0, at every block matrix of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or its block matrices are not those of the model.
    """
    matrices = select(open_checkpoint(checkpoint).matrices(), embeddings=False)
    found = Counter((m.layer, m.role, *m.shape) for m in matrices if m.layer is not None)
    wanted = Counter((layer, *one) for layer in range(shape.layers) for one in shape.block_matrices())
    if odd := (found - wanted) or (wanted - found):
        layer, role, rows, cols = next(iter(odd))
        verb = "has" if found[layer, role, rows, cols] else "lacks"
        raise CheckpointError(
            checkpoint,
            f"is not {shape.name}: it {verb} a matrix {role!r} of {rows}×{cols} in layer {layer}",
            f"That has {shape.layers} layers of width {shape.width}; give its checkpoint",
        )
    return Trajectories.of_checkpoints({0: checkpoint})


def depth_gradients(look: Trajectories) -> list[DepthGradient]:
    """Stable rank and the three exponents by role, and over all block matrices; of the first look."""
    roles = list(
        dict.fromkeys(r for r, layer in zip(look.roles, look.layers, strict=True) if layer is not None)
    )
    return [
        _gradient(role, name, look.layerwise(name, None if role == ALL_ROLES else [role])[0])
        for role in (*roles, ALL_ROLES)
        for name in STATISTICS
    ]


def _gradient(role: str, statistic: str, values: Floats) -> DepthGradient:
    depth = len(values)
    if depth < 2 or not np.isfinite(values).all():
        return DepthGradient(role, statistic, float(values.mean()), *(float("nan"),) * 3)
    line = linregress(np.linspace(0, 1, depth), values)
    freedom = depth - 2
    half = student.ppf((1 + CONFIDENCE) / 2, freedom) * line.stderr if freedom else float("nan")
    return DepthGradient(
        role, statistic, float(values.mean()), line.slope, float(line.slope - half), float(line.slope + half)
    )


def look_seconds(models: Iterable[ModelShape], max_n: int | None = None) -> dict[str, float | None]:
    """Seconds of an exact look at each model's block matrices, by name, from random weights.

    One matrix of each distinct shape is looked at, several times, and the median counted as often as the
    shape occurs. None where a matrix has a side above max_n.
    """
    counts: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    for model in models:
        for _, rows, cols in model.block_matrices():
            counts[model.name][rows, cols] += model.layers
    shapes = {shape for count in counts.values() for shape in count}
    timed = {shape: _seconds(*shape) for shape in shapes if max_n is None or max(shape) <= max_n}
    return {
        name: sum(times * timed[shape] for shape, times in count.items())
        if count.keys() <= timed.keys()
        else None
        for name, count in counts.items()
    }


def _seconds(rows: int, cols: int) -> float:
    generator = torch.Generator().manual_seed(rows * 1_000_003 + cols)
    weight = 0.02 * torch.randn(rows, cols, generator=generator)
    taken = []
    for _ in range(1 + _REPEATS):  # the first one warms up
        start = time.perf_counter()
        spectral_stats(weight, return_svdvals=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
