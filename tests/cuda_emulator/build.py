"""Compiling a CUDA source with g++ and the emulator's headers, and loading what comes out."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from spectral_fast.cuda.sources import Types, options
from tests.cuda_emulator.kernels import Kernel, kernels_of, stubs

_FOLDER = Path(__file__).parent


class Checks(Enum):
    """What a build looks for as it runs, by the flags it takes."""

    NONE = ()
    RACES = ("-fsanitize=thread", "-DSF_RACES")  # linked without: races.h stands in for ThreadSanitizer
    SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


class Library(NamedTuple):
    path: Path
    kernels: dict[str, Kernel]
    functions: ctypes.CDLL


@functools.cache
def _fused_multiply_add() -> tuple[str, ...]:
    """nvcc contracts a * b + c, and so does g++ where the CPU can."""
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    return ("-mfma", "-ffp-contract=fast") if re.search(r"\bfma\b", cpu) else ()


def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"spectral_fast_emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user: nothing from there is loaded")
    return folder


def _compile(text: str, types: Types, checks: Checks) -> Path:
    flags = ["-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-w", "-DSF_EMULATED"]
    flags += [*_fused_multiply_add(), *options(types), *checks.value]
    headers = "".join(path.read_text() for path in sorted(_FOLDER.glob("*.h")))
    key = hashlib.sha256("\0".join([text, headers, *flags]).encode()).hexdigest()[:32]
    library = _cache() / f"{key}.so"
    if library.exists():
        return library
    # Under names of its own first: another process may be at the same.
    unfinished = library.with_name(f"{key}.{os.getpid()}.so")
    compiled = unfinished.with_suffix(".o")
    runtime = checks.value if checks is Checks.SANITIZE else ()
    commands = [
        ["g++", *flags, "-include", str(_FOLDER / "emulator.h"), "-x", "c++", "-c", "-", "-o", str(compiled)],
        ["g++", "-shared", *runtime, str(compiled), "-o", str(unfinished)],
    ]
    try:
        for command in commands:
            result = subprocess.run(command, input=text, capture_output=True, text=True)
            if result.returncode:
                raise ValueError(f"{' '.join(command)} failed:\n{result.stderr}")
        unfinished.replace(library)
    finally:
        compiled.unlink(missing_ok=True)
    return library


@functools.cache
def load(text: str, types: Types, checks: Checks) -> Library:
    """The kernels of a source, compiled or from the cache."""
    kernels = kernels_of(text)
    path = _compile(text + stubs(kernels), types, checks)
    return Library(path, kernels, ctypes.CDLL(str(path)))


def with_source_lines(message: str, text: str, library: Path) -> str:
    """A report with addresses of code as lines of the source, and those lines after it."""

    def line(match: re.Match[str]) -> str:
        # An address of a return: the call is before it.
        command = ["addr2line", "-e", str(library), hex(int(match[1], 16) - 1)]
        where = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return f"line {where.strip().rpartition(':')[2].split()[0]}"

    message = re.sub(r"pc (0x[0-9a-f]+)", line, message)
    lines = text.splitlines()
    named = sorted({int(number) for number in re.findall(r"line (\d+)", message)})
    return message + "".join(f"\n{n:6}: {lines[n - 1].strip()}" for n in named if 0 < n <= len(lines))
