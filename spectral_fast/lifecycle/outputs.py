"""What the analyses write: plain data, text and pictures, each file whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from spectral_fast.export import write_atomically


def plain(value: Any) -> Any:
    """As JSON has it: records as objects, arrays as lists, NaN and infinity as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Raises OSError where the file cannot be written, ValueError for data that is not `plain`."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Raises OSError where the file cannot be written."""

    def write(part: Path) -> None:
        part.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_figure(path: Path, figure: Any) -> None:
    """A matplotlib Figure as PNG. Raises OSError where the file cannot be written."""
    write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=100))
