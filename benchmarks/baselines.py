"""What the package is compared with, by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import spectral_fast
from benchmarks.cases import bind
from benchmarks.timing import Contestant, failure_status


@dataclass(frozen=True)
class Baseline:
    """A way of computing singular values.

    Attributes:
        devices: where it runs.
        values: the call, on what `prepare` made of the matrices outside the timed region.
        requires: a module that has to be installed.
        threaded: torch.set_num_threads governs it, so it is timed with one thread and with all.
    """

    devices: tuple[str, ...]
    values: Callable[[Any], Any]
    prepare: Callable[[Tensor], Any] = lambda A: A
    requires: str = ""
    threaded: bool = False

    def obstacle(self, device: torch.device) -> str:
        """Why it cannot be timed here; empty where it can."""
        if device.type not in self.devices:
            return f"not available: runs on {' and '.join(self.devices)} only"
        if self.requires and importlib.util.find_spec(self.requires) is None:
            return f"not installed: {self.requires}"
        return ""


def compute_precision(A: Tensor) -> Tensor:
    """A itself, or in float32 where it is a half precision, which no baseline accepts."""
    return A.float() if A.dtype.itemsize < 4 else A


def _torch(A: Tensor, driver: str | None = None) -> Tensor:
    return torch.linalg.svdvals(compute_precision(A), driver=driver)


def _gram(A: Tensor) -> Tensor:
    tall = A.double() if A.shape[-2] >= A.shape[-1] else A.double().mT
    values = torch.linalg.eigvalsh(tall.mT @ tall).flip(-1).clamp(min=0).sqrt()
    return values.to(compute_precision(A).dtype)


def _to_numpy(A: Tensor) -> Any:
    return compute_precision(A).numpy()


def _numpy(array: Any) -> Any:
    return np.linalg.svd(array, compute_uv=False)


def _scipy(array: Any, lapack_driver: str) -> Any:
    import scipy.linalg

    if array.ndim == 2:
        return scipy.linalg.svd(array, compute_uv=False, lapack_driver=lapack_driver)
    return np.stack([_scipy(matrix, lapack_driver) for matrix in array])


def _to_cupy(A: Tensor) -> Any:
    import cupy

    return cupy.from_dlpack(compute_precision(A).contiguous())


def _cupy(array: Any) -> Any:
    import cupy

    # On torch's stream, or the events would not see the work.
    with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
        return cupy.linalg.svd(array, compute_uv=False)


BASELINES = {
    "torch": Baseline(("cpu", "cuda"), _torch, threaded=True),
    "torch-gesvd": Baseline(("cuda",), partial(_torch, driver="gesvd")),
    "torch-gesvdj": Baseline(("cuda",), partial(_torch, driver="gesvdj")),
    "torch-gesvda": Baseline(("cuda",), partial(_torch, driver="gesvda")),
    "gram": Baseline(("cpu", "cuda"), _gram, threaded=True),
    "numpy": Baseline(("cpu",), _numpy, _to_numpy),
    "scipy-gesdd": Baseline(("cpu",), partial(_scipy, lapack_driver="gesdd"), _to_numpy, requires="scipy"),
    "scipy-gesvd": Baseline(("cpu",), partial(_scipy, lapack_driver="gesvd"), _to_numpy, requires="scipy"),
    "cupy": Baseline(("cuda",), _cupy, _to_cupy, requires="cupy"),
}

# torch is what a ratio is about; the Gram matrix is the obvious shortcut. On a GPU every driver counts.
DEFAULT_BASELINES = {
    "cpu": ("torch", "gram"),
    "cuda": ("torch", "torch-gesvd", "torch-gesvdj", "torch-gesvda", "gram", "cupy"),
}


def ours(A: Tensor, calls: str, threads: int) -> Contestant:
    """spectral_fast.svdvals, looked up at each call as a user's code does."""
    return Contestant("ours", bind(lambda matrix: spectral_fast.svdvals(matrix), A, calls), threads)


def contestants(
    names: Sequence[str], A: Tensor, calls: str, threads: int
) -> tuple[list[Contestant], dict[str, str]]:
    """The baselines that can be timed on these matrices, and of the others why not."""
    able, obstacles = [], {}
    for name in names:
        baseline = BASELINES[name]
        if obstacle := baseline.obstacle(A.device):
            obstacles[name] = obstacle
            continue
        try:
            call = bind(baseline.values, baseline.prepare(A), calls)
        except Exception as error:  # a copy that does not fit is that baseline's row
            obstacles[name] = failure_status(error)
            continue
        if not baseline.threaded or A.device.type != "cpu":
            able.append(Contestant(name, call))
            continue
        for count in dict.fromkeys((1, threads)):
            able.append(Contestant(name, call, count))
    return able, obstacles
