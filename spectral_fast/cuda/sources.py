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
    raise RuntimeError(f"{_FOLDERS[0]} lacks the CUDA sources: the installation is incomplete; install again")


@functools.cache
def source(stage: str) -> str:
    """The text of csrc/cuda/<stage>.cu with its headers in place: CuPy's cache sees a change in any."""
    text = (folder() / f"{stage}.cu").read_text()

    def inline(include: re.Match[str]) -> str:
        header = (folder() / include[1]).read_text().replace("#pragma once\n", "\n")
        next_line = text.count("\n", 0, include.end()) + 2
        return f'#line 1 "{include[1]}"\n{header}#line {next_line} "{stage}.cu"'

    return f'#line 1 "{stage}.cu"\n' + re.sub(r'^#include "(\w+\.h)"$', inline, text, flags=re.MULTILINE)


def options(types: Types) -> tuple[str, ...]:
    """What NVRTC is told. CuPy adds the architecture and -ftz=true."""
    return ("-std=c++17", f"-DSF_SCALAR={_C_NAMES[types.scalar]}", f"-DSF_WIDE={_C_NAMES[types.wide]}")
