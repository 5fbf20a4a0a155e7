"""The CUDA sources and the options they are compiled with: for NVRTC at run time, and for the tests."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

import torch

# Installed: copied into the package by setup.py. In a checkout: where they are written.
_FOLDERS = (Path(__file__).with_name("csrc"), Path(__file__).parents[2] / "csrc/cuda")

_C_NAMES = {torch.float32: "float", torch.float64: "double"}


class Types(NamedTuple):
    """What a stage is compiled for: dtype of matrix and values, dtype of the small, sequential stages."""

    scalar: torch.dtype
    wide: torch.dtype


def folder() -> Path:
    """Where the sources are. Raises RuntimeError where an installation lacks them."""
    for candidate in _FOLDERS:
        if (candidate / "kernels.h").is_file():
            return candidate
    raise RuntimeError(f"the CUDA sources are not in {_FOLDERS[0]}: the installation is incomplete; install again")


@functools.cache
def source(stage: str) -> str:
    """The text of csrc/cuda/<stage>.cu with its own headers in place, so that a cache sees a change in any of them."""

    def inline(match: re.Match[str]) -> str:
        return (folder() / match[1]).read_text().replace("#pragma once\n", "")

    return re.sub(r'^#include "(\w+\.h)"$', inline, (folder() / f"{stage}.cu").read_text(), flags=re.MULTILINE)


def options(types: Types) -> tuple[str, ...]:
    """What NVRTC is told. CuPy adds the architecture and -ftz=true."""
    return ("-std=c++17", f"-DSF_SCALAR={_C_NAMES[types.scalar]}", f"-DSF_WIDE={_C_NAMES[types.wide]}")
