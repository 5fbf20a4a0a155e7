"""What the compiler made: instruction sets kept apart, a portable build, sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spectral_fast import _cpu

ROOT = Path(__file__).parent.parent
# The script that runs in place of the package, with numpy alone: all paths of the kernels, a few shapes each.
PROBE = """
import importlib.util, sys, numpy as np
spec = importlib.util.spec_from_file_location("spectral_fast._cpu", sys.argv[1])
cpu = importlib.util.module_from_spec(spec); spec.loader.exec_module(cpu)
rng = np.random.default_rng(1)
for isa in cpu.runnable_isas():
    cpu.use_isa(isa)
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-13)):
        for m, n in ((1, 1), (1, 9), (9, 1), (5, 3), (17, 33), (140, 130), (70, 300), (1500, 20)):
            for order in "CF":
                a = np.array(rng.standard_normal((3, m, n)), dtype=dtype, order=order)
                s, info = np.empty((3, min(m, n)), dtype), np.empty(3, np.int32)
                strides = [x // a.itemsize for x in a.strides]
                element = cpu.element_types[np.dtype(dtype).name]
                out = s.ctypes.data, info.ctypes.data
                assert cpu.svdvals(a.ctypes.data, element, a.shape, strides, *out, threads=2)
                exact = np.linalg.svd(a.astype(np.float64), compute_uv=False)
                assert np.abs(s - exact).max() <= tolerance * exact.max(), (isa, m, n)
print(cpu.built_isas())
"""


@pytest.mark.parametrize("isa", _cpu.built_isas())
def test_units_share_no_function(isa: str, tmp_path: Path) -> None:
    """A weak symbol compiled with AVX-512 could be the one the linker keeps for everybody."""
    if not (shutil.which("c++") and shutil.which("nm")):
        pytest.skip("no compiler or nm on this machine")
    unit, compiled = ROOT / "csrc/cpu" / f"isa_{isa}.cpp", tmp_path / "unit.o"
    # -O0 inlines nothing: every function that could be shared shows.
    flags = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]}
    subprocess.run(
        ["c++", "-std=c++17", "-O0", "-Wno-psabi", *flags.get(isa, []), "-c", str(unit), "-o", str(compiled)],
        check=True,
    )
    symbols = subprocess.run(["nm", str(compiled)], check=True, capture_output=True, text=True).stdout
    shared = [line for line in symbols.splitlines() if line.split()[-2] in "WwVvu"]
    assert shared == []
    defined = [line.split()[-1] for line in symbols.splitlines() if line.split()[-2] in "TDBR"]
    assert len(defined) == 1, defined
    assert f"kernels_{isa}" in defined[0]


def _run_threads_probe(tmp_path: Path, *flags: str) -> None:
    if not shutil.which("c++"):
        pytest.skip("no compiler on this machine")
    probe, units = tmp_path / "probe", [ROOT / "tests/threads_probe.cpp", ROOT / "csrc/cpu/threads.cpp"]
    subprocess.run(
        ["c++", "-std=c++17", "-O1", "-g", "-pthread", *flags, f"-I{ROOT}", *units, "-o", probe], check=True
    )
    done = subprocess.run([probe], check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_pool_of_threads(tmp_path: Path) -> None:
    _run_threads_probe(tmp_path)


@pytest.mark.slow
def test_the_pool_of_threads_has_no_races(tmp_path: Path) -> None:
    _run_threads_probe(tmp_path, "-fsanitize=thread")


def _build(tmp_path: Path, **extra: str) -> Path:
    """The extension alone, built from a copy of the sources."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "spectral_fast").mkdir()
    shutil.copy(ROOT / "spectral_fast/_version.py", tmp_path / "spectral_fast")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "out"],
        cwd=tmp_path,
        env={**os.environ, **extra},
        check=True,
        capture_output=True,
    )
    (built,) = (tmp_path / "out").rglob("_cpu*.so")
    return built


def _run(module: Path, **extra: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(module)],
        env={**os.environ, **extra},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_portable_build(tmp_path: Path) -> None:
    """Without any x86 flag, as on aarch64: one instruction set, and it passes."""
    assert _run(_build(tmp_path, SPECTRAL_FAST_PORTABLE="1")) == "['baseline']"


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    runtime = subprocess.run(
        ["c++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the compiler has no address sanitizer")
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -g"
    module = _build(tmp_path, CFLAGS=flags, LDFLAGS=flags)
    # CPython's own allocations at exit are not ours to judge.
    _run(module, LD_PRELOAD=runtime, ASAN_OPTIONS="detect_leaks=0")
