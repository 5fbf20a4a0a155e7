"""The CUDA kernels compiled for chips that are not here.

By NVRTC, with the text and the options of spectral_fast/cuda/launch.py, down CuPy's own path: only the chip,
the loading and the cache on disk are replaced. What is looked at is the binary that a GPU would get. And by
nvcc, from the files as they are.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import itertools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from spectral_fast.cuda import launch, sources
from spectral_fast.cuda.sources import Types
from tests import gates
from tests.cuda_emulator.kernels import kernels_of

STAGES = sorted(path.stem for path in sources.folder().glob("*.cu"))
TYPES = {
    "float/double": Types(torch.float32, torch.float64),
    "double/double": Types(torch.float64, torch.float64),
    "float/float": Types(torch.float32, torch.float32),
}
CHIPS = ("80", "89", "90", "100", "120")
# Where Wide is float: a double takes 64 times as long (CUDA C++ Programming Guide, arithmetic instructions).
SLOW_DOUBLE = ("89", "120")
CHIP_REGISTERS = 65536  # of a multiprocessor and, at most, of a block; of every chip above


class Kernel(NamedTuple):
    """What a kernel may have."""

    registers: int  # of a thread, with any types on any chip; multiples of eight, as they are allocated
    conversions: frozenset[str] = frozenset()  # between Scalar float and Wide double: what is read, written


READS, WRITES = frozenset({"F2F.F64.F32"}), frozenset({"F2F.F32.F64"})
KERNELS = {
    "panel": Kernel(128, READS | WRITES),
    "panel_scratch": Kernel(128, READS | WRITES),
    "pack_band": Kernel(24, READS),
    "chase": Kernel(168),
    "direct": Kernel(40, READS),
    "squares": Kernel(80),
    "count_grid": Kernel(72),
    "bisect": Kernel(120),
    "finish": Kernel(80, WRITES),
}

DOUBLE = re.compile(r"\bD(?:ADD|MUL|FMA|SETP|MNMX|MMA)\b|\.F64\b|\bMUFU\.\w*64H\b")
CONVERSION = re.compile(r"\bF2F(?:\.FTZ)?\.(?:F32\.F64|F64\.F32)\b")


class Compiled(NamedTuple):
    log: str
    options: tuple[str, ...]
    cubin: bytes


class Resources(NamedTuple):
    registers: int
    local: int  # bytes of stack and of local memory: spills, and arrays that are not in registers
    threads: int  # of the largest block


class NVRTC:
    """What spectral_fast.cuda.launch would have CuPy compile and load, for a chip given by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cupy = gates.module("cupy")
        from cupy._core import core
        from cupy.cuda import compiler, function

        try:
            compiler._get_nvrtc_version()
        except (ImportError, OSError, RuntimeError) as error:
            gates.missing(
                f"CuPy finds no NVRTC: the test extra has nvidia-cuda-nvrtc on Linux ({str(error).strip()})"
            )

        loaded: list[bytes] = []
        options: list[tuple[str, ...]] = []

        class Module(function.Module):  # type: ignore[misc]
            def load(self, cubin: bytes) -> None:
                loaded.append(cubin)

        class NoCache:
            def load(self, name: str) -> None: ...

            def save(self, name: str, cubin: bytes, source: str) -> None: ...

        class Program(compiler._NVRTCProgram):  # type: ignore[misc]
            def compile(self, given: tuple[str, ...] = (), log_stream: Any = None) -> Any:
                options.append(given)
                return super().compile(given, log_stream)

        # Without its cache for each device.
        option_for_arch = compiler._get_arch_for_options_for_nvrtc.__wrapped__
        monkeypatch.setattr(cupy, "RawModule", lambda **given: given)
        monkeypatch.setattr(compiler, "_get_arch", lambda: self._chip)
        monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", option_for_arch)
        monkeypatch.setattr(compiler, "_kernel_cache_backend", NoCache())
        monkeypatch.setattr(compiler, "_NVRTCProgram", Program)
        monkeypatch.setattr(compiler.function, "Module", Module)
        self._core, self._loaded, self._options = core, loaded, options
        self._done: dict[tuple[str, Types, str], Compiled] = {}

    def __call__(self, stage: str, types: Types, chip: str) -> Compiled:
        if (stage, types, chip) not in self._done:
            self._chip = chip
            self._loaded.clear()
            log = io.StringIO()
            given = launch._module.__wrapped__(stage, types, 0)
            # As RawModule does: _get_raw_module in cupy/_core/raw.pyx.
            self._core.compile_with_cache(
                given.pop("code"), prepend_cupy_headers=False, log_stream=log, **given
            )
            (cubin,) = self._loaded
            # CuPy leaves the last byte to the zero that ends every `bytes`.
            self._done[stage, types, chip] = Compiled(log.getvalue(), self._options[-1], cubin + b"\0")
        return self._done[stage, types, chip]


@pytest.fixture(scope="module")
def nvrtc() -> Iterator[NVRTC]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield NVRTC(monkeypatch)


def cuobjdump(cubin: bytes, *options: str) -> str:
    tool = Path(str(gates.module("triton").__file__)).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, Resources]:
    """Of every kernel in a binary."""
    text = cuobjdump(cubin, "--dump-resource-usage", "--dump-elf")
    used = re.findall(
        r"^ Function (\w+):\n\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text, re.MULTILINE
    )
    bound = r"^\.nv\.info\.(\w+)\n(?:(?!\.nv\.).*\n)*?.*EIATTR_MAX_THREADS\n.*\n\s*Value:\s*0x(\w+) 0x1 0x1 "
    threads = {name: int(number, 16) for name, number in re.findall(bound, text, re.MULTILINE)}
    return {
        name: Resources(int(registers), int(stack) + int(local), threads[name])
        for name, registers, stack, local in used
    }


def instructions(cubin: bytes, pattern: re.Pattern[str]) -> dict[str, list[str]]:
    """Those of each kernel that the pattern is found in."""
    _, *functions = re.split(r"^\s*Function : (\w+)$", cuobjdump(cubin, "-sass"), flags=re.MULTILINE)
    found = {}
    for name, text in zip(functions[::2], functions[1::2], strict=True):
        lines = re.findall(r"^\s*/\*\w{4,}\*/\s+(.*?;)", text, re.MULTILINE)
        assert lines, name
        found[name] = [line for line in lines if pattern.search(line)]
    return found


def allocated(registers: int) -> int:
    """A warp's registers come in units of 256."""
    return -(-registers // 8) * 8


def cases(
    chips: tuple[str, ...], types: tuple[str, ...], quick: set[tuple[str, str]]
) -> pytest.MarkDecorator:
    """Every stage for every chip with the types it has there; all but the quick are for `make test-slow`."""
    return pytest.mark.parametrize(
        ("stage", "chip", "types"),
        [
            pytest.param(*case, marks=() if case[1:] in quick else pytest.mark.slow)
            for case in itertools.product(STAGES, chips, types)
            if case[2] != ("float/double" if case[1] in SLOW_DOUBLE else "float/float")
        ],
    )


PROBE = """#include "kernels.h"
extern "C" __global__ void __launch_bounds__(96) probe(Scalar* a, long long n) {
  int unused;
  Scalar in_memory[100];
#pragma unroll 1
  for (int i = 0; i < 100; ++i) in_memory[int(a[i])] = a[i];
  a[threadIdx.x] = 0.1 * in_memory[n];
}
"""


@pytest.mark.parametrize("chip", ["90", *SLOW_DOUBLE])
def test_faults_are_seen(chip: str, nvrtc: NVRTC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe.cu").write_text(PROBE)
    shutil.copy(sources.folder() / "kernels.h", tmp_path)
    monkeypatch.setattr(sources, "_FOLDERS", (tmp_path,))
    compiled = nvrtc("probe", TYPES["float/float"], chip)
    assert 'variable "unused" was declared but never referenced' in compiled.log
    (used,) = resources(compiled.cubin).values()
    assert used.local >= 400
    assert used.threads == 96
    (double,) = instructions(compiled.cubin, DOUBLE).values()
    assert any("DMUL" in line for line in double)
    (conversions,) = instructions(compiled.cubin, CONVERSION).values()
    assert len(conversions) == 2


def test_every_kernel_is_listed() -> None:
    assert set(KERNELS) == {kernel for stage in STAGES for kernel in kernels_of(sources.source(stage))}


@cases(CHIPS, tuple(TYPES), {("90", "float/double"), ("90", "double/double"), ("120", "float/float")})
def test_as_compiled_at_run_time(stage: str, chip: str, types: str, nvrtc: NVRTC) -> None:
    compiled = nvrtc(stage, TYPES[types], chip)
    assert compiled.log == ""
    found = resources(compiled.cubin)
    assert set(found) == set(kernels_of(sources.source(stage)))
    for kernel, used in found.items():
        print(kernel, used)  # pytest -rP shows them
        assert used.local == 0, kernel
        assert allocated(used.registers) <= KERNELS[kernel].registers, kernel
        assert allocated(used.registers) * used.threads <= CHIP_REGISTERS, kernel


def test_options(nvrtc: NVRTC) -> None:
    """What kernels are written for: float32 subnormals are zero; division and root are rounded correctly."""
    for name, types in TYPES.items():
        scalar, wide = name.split("/")
        given = nvrtc(STAGES[0], types, "90").options
        assert {option for option in given if not option.startswith("-I")} == {
            "-std=c++17",
            f"-DSF_SCALAR={scalar}",
            f"-DSF_WIDE={wide}",
            "-ftz=true",
            "-arch=sm_90",
            "--device-as-default-execution-space",
        }


@cases(SLOW_DOUBLE, ("float/float",), {("120", "float/float")})
def test_no_double_where_it_is_slow(stage: str, chip: str, types: str, nvrtc: NVRTC) -> None:
    found = instructions(nvrtc(stage, TYPES[types], chip).cubin, DOUBLE)
    assert not any(found.values()), found


@cases(("90",), ("float/double", "double/double"), {("90", "float/double"), ("90", "double/double")})
def test_conversions(stage: str, chip: str, types: str, nvrtc: NVRTC) -> None:
    """Wide is rounded to Scalar where a result is written, and nothing of a double passes through a float."""
    found = instructions(nvrtc(stage, TYPES[types], chip).cubin, CONVERSION)
    for kernel, lines in found.items():
        kinds = {re.sub(r"\.FTZ", "", match[0]) for line in lines if (match := CONVERSION.search(line))}
        assert kinds == (KERNELS[kernel].conversions if types == "float/double" else set()), (kernel, lines)


@functools.cache
def nvcc() -> Path:
    try:
        installed = importlib.metadata.distribution("nvidia-cuda-nvcc").locate_file("nvidia/cu13/bin/nvcc")
        return Path(str(installed))
    except importlib.metadata.PackageNotFoundError:
        found = shutil.which("nvcc")
    if not found:
        gates.missing("nvcc is not installed: the test extra has nvidia-cuda-nvcc on Linux")
    return Path(found)


@cases((*CHIPS, "90a"), tuple(TYPES), {("90a", "float/double")})
def test_nvcc(stage: str, chip: str, types: str, tmp_path: Path) -> None:
    command = [nvcc(), "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", *sources.options(TYPES[types])]
    command += ["-cubin", "-gencode", f"arch=compute_{chip},code=sm_{chip}", "-o", tmp_path / "cubin"]
    done = subprocess.run(
        [*command, sources.folder() / f"{stage}.cu"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr
    )
    used = re.findall(r"Used \d+ registers, used (\d+) barriers(.*)", done.stderr)
    assert len(used) == len(kernels_of(sources.source(stage))) <= len(frames), done.stderr
    assert set(frames) == {("0", "0", "0")}, done.stderr
    # Static shared memory would be listed: all of it is the launch's to give. One barrier: __syncthreads.
    assert all(int(barriers) <= 1 and "smem" not in rest for barriers, rest in used), done.stderr
