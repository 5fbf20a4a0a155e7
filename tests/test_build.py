"""What the build made: instruction sets kept apart, CUDA sources in the package, a portable build, sanitizers
(`make sanitize`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from spectral_fast import _cpu
from spectral_fast.cuda import sources

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("isa", _cpu.built_isas())
def test_units_share_no_function(isa: str, tmp_path: Path) -> None:
    """A weak symbol compiled with AVX-512 could be the one the linker keeps for everybody."""
    if not (shutil.which("c++") and shutil.which("nm")):
        pytest.skip("no compiler or nm on this machine")
    unit, compiled = ROOT / "csrc/cpu" / f"isa_{isa}.cpp", tmp_path / "unit.o"
    # -O0 inlines nothing: every function that could be shared shows.
    flags = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]}
    common = ["-std=c++17", "-O0", "-fno-exceptions", "-Wno-psabi"]
    subprocess.run(["c++", *common, *flags.get(isa, []), "-c", str(unit), "-o", str(compiled)], check=True)
    symbols = subprocess.run(["nm", str(compiled)], check=True, capture_output=True, text=True).stdout
    shared = [line for line in symbols.splitlines() if line.split()[-2] in "WwVvu"]
    assert shared == []
    defined = [line.split()[-1] for line in symbols.splitlines() if line.split()[-2] in "TDBR"]
    assert len(defined) == 1, defined
    assert f"kernels_{isa}" in defined[0]


def _setup(folder: Path, *command: str | Path, **extra: str) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=folder,
        env={**os.environ, **extra},
        check=True,
        capture_output=True,
    )


def _build(tmp_path: Path, flags: str) -> Path:
    """The extension alone, built with more flags from a copy of the sources.

    With -O1, a quarter of the compiler's time or less: what is looked for is in the source.
    """
    if not shutil.which("c++"):
        pytest.skip("no compiler on this machine")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    script = tmp_path / "setup.py"
    text = script.read_text()
    assert text.count('"-O3"') == 1
    script.write_text(text.replace('"-O3"', '"-O1"'))
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "spectral_fast").mkdir()
    shutil.copy(ROOT / "spectral_fast/_version.py", tmp_path / "spectral_fast")
    # Which of the two a C++ source is compiled with depends on the version of setuptools.
    variables = {"CFLAGS": flags, "CXXFLAGS": flags, "LDFLAGS": flags}
    _setup(tmp_path, "build_ext", "--build-lib", "out", "--build-temp", "objects", **variables)
    (built,) = (tmp_path / "out").rglob("_cpu*.so")
    return built


def _unpacked_sdist(tmp_path: Path) -> Path:
    """What a source distribution of this checkout holds."""
    # A copy, and not this checkout: the list of files left there by an earlier build is read first.
    checkout = tmp_path / "checkout"
    leave = shutil.ignore_patterns(".*", "*.egg-info", "*.so", "__pycache__", "build", "demo-output")
    shutil.copytree(ROOT, checkout, ignore=leave)
    _setup(checkout, "sdist", "--dist-dir", tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    return unpacked


def _assert_installed_sources(installation: Path) -> None:
    """The package there finds its own copies, of every file, and reads what this checkout has."""
    names = sorted(path.name for path in (ROOT / "csrc/cuda").iterdir())
    stages = [Path(name).stem for name in names if name.endswith(".cu")]
    script = (
        "import json, sys; from spectral_fast.cuda import sources as s; "
        "print(json.dumps([str(s.folder()), [s.source(stage) for stage in sys.argv[1:]]]))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, *stages],
        cwd=installation,
        env={**os.environ, "PYTHONPATH": str(installation)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    folder, texts = json.loads(printed)
    assert Path(folder) == installation / "spectral_fast/cuda/csrc"
    assert sorted(path.name for path in Path(folder).iterdir()) == names
    assert texts == [sources.source(stage) for stage in stages]


def _digests(module: str | Path, **extra: str) -> dict[str, str]:
    """Runs kernels_probe.py with a module; one digest of all values for each instruction set."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/kernels_probe.py", module],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **extra},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    digests: dict[str, str] = json.loads(done.stdout)
    return digests


def _stress(module: Path, **extra: str) -> None:
    """Batches that shrink and grow while callers compete, at least a round of each caller."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.stress_kernels", module, "10"],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **extra},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _runtime(name: str) -> str:
    """A sanitizer's library, which has to be in the process before Python."""
    if not shutil.which("c++"):
        pytest.skip("no compiler on this machine")
    path = subprocess.run(
        ["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"the compiler has no {name}")
    return path


def _assert_instrumented(tmp_path: Path, prefix: str) -> None:
    """Flags that do not arrive would make every sanitizer pass."""
    objects = list((tmp_path / "objects").rglob("*.o"))
    assert len(objects) >= 4
    for compiled in objects:
        symbols = subprocess.run(["nm", compiled], check=True, capture_output=True, text=True).stdout
        assert prefix in symbols, compiled


def _compile(tmp_path: Path, *arguments: str) -> Path:
    """A program from sources in this repository."""
    if not shutil.which("c++"):
        pytest.skip("no compiler on this machine")
    program = tmp_path / "program"
    subprocess.run(
        ["c++", "-std=c++17", "-O1", "-g", "-pthread", "-Wno-psabi", "-I.", *arguments, "-o", program],
        cwd=ROOT,
        check=True,
    )
    return program


def _check(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


THREADS_PROBE = ("tests/threads_probe.cpp", "csrc/cpu/threads.cpp", "csrc/cpu/openmp.cpp", "-ldl")
KERNELS_PROBE = (
    "tests/kernels_probe.cpp",
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/lanczos.cpp",
    "csrc/cpu/look.cpp",
    "csrc/cpu/openmp.cpp",
    "csrc/cpu/products.cpp",
    "csrc/cpu/spectra.cpp",
    "csrc/cpu/threads.cpp",
    "csrc/cpu/vectors.cpp",
    "csrc/cpu/isa_baseline.cpp",
    "-ldl",
)


@pytest.mark.parametrize("flag", [(), ("-fopenmp",)], ids=["own", "OpenMP"])
def test_the_threads_of_a_call(
    tmp_path: Path, flag: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of our own, and where the program has an OpenMP runtime, those of its team."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # a team that sleeps is left alone
    _check(_compile(tmp_path, *THREADS_PROBE, *flag))


def test_cuda_sources_of_a_checkout() -> None:
    """Those that are edited, also where the package is installed in place."""
    assert sources.folder() == ROOT / "csrc/cuda"


def test_cuda_sources_are_packaged(tmp_path: Path) -> None:
    """From a source distribution, as pip would; without compiling the extension, which is this one's."""
    installation = tmp_path / "lib"
    _setup(_unpacked_sdist(tmp_path), "build_py", "--build-lib", installation)
    shutil.copy(_cpu.__file__, installation / "spectral_fast")
    _assert_installed_sources(installation)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_portable_wheel(tmp_path: Path) -> None:
    """Without any x86 flag, as on aarch64: one instruction set, and the bits of the baseline in any build.

    The CUDA sources are in it.
    """
    if not shutil.which("c++"):
        pytest.skip("no compiler on this machine")
    _setup(_unpacked_sdist(tmp_path), "bdist_wheel", "--dist-dir", tmp_path, SPECTRAL_FAST_PORTABLE="1")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "lib")
    _assert_installed_sources(tmp_path / "lib")
    (module,) = (tmp_path / "lib").rglob("_cpu*.so")
    assert _digests(module) == {"baseline": _digests(_cpu.__file__)["baseline"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sanitize_addresses_and_undefined_behaviour(tmp_path: Path) -> None:
    runtime = _runtime("libasan.so")
    module = _build(tmp_path, "-fsanitize=address,undefined -fno-sanitize-recover=all -g1")
    _assert_instrumented(tmp_path, "__asan_")
    # CPython's own allocations at exit are not ours to judge.
    _digests(module, LD_PRELOAD=runtime, ASAN_OPTIONS="detect_leaks=0")
    _stress(module, LD_PRELOAD=runtime, ASAN_OPTIONS="detect_leaks=0")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sanitize_threads(tmp_path: Path) -> None:
    """Batches, single large matrices, callers at once and forks, on 1, 2 and 4 threads."""
    runtime = _runtime("libtsan.so")
    module = _build(tmp_path, "-fsanitize=thread -g1")
    _assert_instrumented(tmp_path, "__tsan_")
    _digests(module, LD_PRELOAD=runtime, TSAN_OPTIONS="halt_on_error=1")
    _stress(module, LD_PRELOAD=runtime, TSAN_OPTIONS="halt_on_error=1")


@pytest.mark.slow
def test_sanitize_threads_of_the_pool(tmp_path: Path) -> None:
    _runtime("libtsan.so")
    _check(_compile(tmp_path, *THREADS_PROBE, "-fsanitize=thread"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sanitize_poisoned_workspaces(tmp_path: Path) -> None:
    """Workspaces and outputs full of NaN before each matrix change no bit."""
    # Not _cpu: CFLAGS replace those of Python (-fwrapv), and the compiler may contract other products.
    modules = []
    for name in ("POISON", "CLEAN"):
        (tmp_path / name).mkdir()
        modules.append(_build(tmp_path / name, f"-DSF_{name}"))
    assert _digests(modules[0]) == _digests(modules[1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sanitize_uninitialised_memory(tmp_path: Path) -> None:
    valgrind = shutil.which("valgrind")
    if not valgrind:
        pytest.skip("no valgrind on this machine")
    _check(valgrind, "-q", "--error-exitcode=9", _compile(tmp_path, *KERNELS_PROBE))
