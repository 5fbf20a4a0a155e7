"""The kernels of a CUDA source: found in its text, called from C, their arguments checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_fast.cuda.launch import Argument
from spectral_fast.cuda.sources import Types

_NESTED = r"\(((?:[^()]|\([^()]*\))*)\)"
_BOUNDS = rf"(?:__launch_bounds__\s*{_NESTED}\s*)?"
_KERNEL = re.compile(rf'extern\s+"C"\s+__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*{_NESTED}\s*\{{')
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DTYPES = {
    "float": torch.float32,
    "double": torch.float64,
    "int": torch.int32,
    "long long": torch.int64,
    "unsigned char": torch.uint8,
}


class Parameter(NamedTuple):
    type: str  # without const and __restrict__
    name: str


class Kernel(NamedTuple):
    name: str
    bounds: str  # what __launch_bounds__ says, an expression
    parameters: tuple[Parameter, ...]


def _parameter(text: str) -> Parameter:
    match = re.fullmatch(
        r"(.*?[\s*])(\w+)", re.sub(r"\b(const|__restrict__)\b", " ", text).strip(), re.DOTALL
    )
    if match is None:
        raise ValueError(f"not a kernel's parameter: {text!r}")
    return Parameter(" ".join(match[1].replace("*", " * ").split()), match[2])


def kernels_of(text: str) -> dict[str, Kernel]:
    """Every `extern "C" __global__` function in a source."""
    found = {}
    for before, after, name, parameters in _KERNEL.findall(_COMMENT.sub(" ", text)):
        parsed = tuple(_parameter(p) for p in parameters.split(",")) if parameters.strip() else ()
        for p in parsed:
            if not p.type.endswith("*") and p.type != "long long":
                raise ValueError(
                    f"{name}: parameter {p.name} is {p.type}; kernels take pointers and long long"
                )
        found[name] = Kernel(name, before or after or "1024", parsed)
    return found


def stubs(kernels: dict[str, Kernel]) -> str:
    """C++ that calls each kernel with its arguments given by address, as the CUDA driver is given them."""
    code = []
    for kernel in kernels.values():
        unpacked = ", ".join(f"*static_cast<{p.type}*>(a[{i}])" for i, p in enumerate(kernel.parameters))
        code.append(f"""
SF_EXPORT int sf_bound_{kernel.name}() {{
  const int bounds[] = {{{kernel.bounds}}};
  return bounds[0];
}}
SF_EXPORT int sf_launch_{kernel.name}(void** arguments, const emulator::Launch* launch) {{
  const auto call = [](void** a) __attribute__((no_sanitize_thread)) {{ {kernel.name}({unpacked}); }};
  return emulator::run_grid("{kernel.name}", call, arguments, *launch);
}}
""")
    return "".join(code)


def check(kernel: Kernel, types: Types, args: Sequence[Argument]) -> None:
    """Raises TypeError where an argument is not what the kernel takes."""
    if len(args) != len(kernel.parameters):
        names = ", ".join(p.name for p in kernel.parameters)
        raise TypeError(
            f"{kernel.name} takes {len(kernel.parameters)} arguments ({names}), {len(args)} given"
        )
    dtypes = {**_DTYPES, "Scalar": types.scalar, "Wide": types.wide}
    for p, arg in zip(kernel.parameters, args, strict=True):
        if p.type == "long long":
            if not isinstance(arg, int) or isinstance(arg, bool):
                raise TypeError(f"{kernel.name}: {p.name} is a long long, not {type(arg).__name__}")
        elif isinstance(arg, Tensor):
            if arg.device.type != "cpu" or arg.layout is not torch.strided:
                raise TypeError(f"{kernel.name}: {p.name} is not a strided tensor of the CPU")
            expected = dtypes.get(p.type.removesuffix("*").strip())
            if expected is not None and arg.dtype != expected:
                raise TypeError(f"{kernel.name}: {p.name} is {p.type}, not {arg.dtype}")
        elif arg is not None:
            raise TypeError(
                f"{kernel.name}: {p.name} is {p.type}: a tensor or None, not {type(arg).__name__}"
            )
