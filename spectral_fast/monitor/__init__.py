"""Looking at a model while it trains."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spectral_fast.monitor.monitor import MonitorReport, SpectralMonitor
from spectral_fast.monitor.record import Look, MatrixLook

if TYPE_CHECKING:
    from spectral_fast.monitor.huggingface import SpectralCallback
    from spectral_fast.monitor.parquet import ParquetSink
    from spectral_fast.monitor.tensorboard import TensorBoardSink
    from spectral_fast.monitor.wandb import WandbSink

__all__ = [
    "Look",
    "MatrixLook",
    "MonitorReport",
    "ParquetSink",
    "SpectralCallback",
    "SpectralMonitor",
    "TensorBoardSink",
    "WandbSink",
]

# Each of these needs a package that the others do not.
_ELSEWHERE = {
    "ParquetSink": "parquet",
    "SpectralCallback": "huggingface",
    "TensorBoardSink": "tensorboard",
    "WandbSink": "wandb",
}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(f"{__name__}.{_ELSEWHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
