"""When the operators run on the GPU kernels: triton and CuPy absent, broken or there, and never at import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spectral_fast.backends import triton as backend

STATE = """
import json, logging, sys
logging.basicConfig(level=logging.DEBUG)
{before}
import torch
before = set(sys.modules)
import spectral_fast as sf
imported = sorted(name for name in set(sys.modules) - before if name.split(".")[0] in ("triton", "cupy"))
registered = [
    name for name in ("svdvals_ex", "stats_from_svdvals", "spectral_stats", "fit_powerlaw", "hill_alpha",
                 "gram_product")
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"spectral_fast::{{name}}", "CUDA")
]
found = sf.capabilities()["cuda"]
{after}
print(json.dumps(dict(imported=imported, registered=registered, found=found)))
"""


def state(before: str = "", after: str = "", path: Path | None = None) -> tuple[dict, str]:
    """What a process sees; and its log. The lines before are run before spectral_fast is imported."""
    folders = [str(path)] if path else []
    folders.append(str(Path(__file__).parents[1]))
    run = subprocess.run(
        [sys.executable, "-c", STATE.format(before=before, after=after)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


def test_with_triton() -> None:
    pytest.importorskip("triton", reason="triton is not installed: the test extra has it on Linux")
    seen, _ = state()
    assert seen["imported"] == []
    assert sorted(seen["registered"]) == sorted(["svdvals_ex", *backend.OPERATORS])
    assert seen["found"]["kernels"] == ["svdvals_ex", *backend.OPERATORS]
    assert seen["found"]["triton"]
    assert seen["found"]["cupy"]
    assert seen["found"]["no_kernels"] == {}


@pytest.mark.parametrize("stand_in", ["None", "type(sys)('triton')"])
def test_without_triton(stand_in: str) -> None:
    seen, _ = state(before=f"sys.modules['triton'] = {stand_in}")
    assert seen["registered"] == ["svdvals_ex"]
    assert seen["found"]["kernels"] == []
    assert not seen["found"]["triton"]
    assert seen["found"]["no_kernels"] == {
        "svdvals_ex": "triton is not installed: pip install 'spectral_fast[cuda]'",
        **dict.fromkeys(backend.OPERATORS, "triton is not installed"),
    }


@pytest.mark.parametrize("stand_in", ["None", "type(sys)('cupy')"])
def test_without_cupy(stand_in: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed: the test extra has it on Linux")
    seen, _ = state(before=f"sys.modules['cupy'] = {stand_in}")
    assert seen["found"]["kernels"] == list(backend.OPERATORS)
    assert not seen["found"]["cupy"]
    assert seen["found"]["no_kernels"] == {
        "svdvals_ex": "CuPy is not installed: pip install 'spectral_fast[cuda]'"
    }


def test_broken_cupy(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed: the test extra has it on Linux")
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy/__init__.py").write_text("raise OSError('libcuda.so.1: cannot open')\n")
    seen, _ = state(path=tmp_path)
    assert seen["found"]["no_kernels"] == {
        "svdvals_ex": "CuPy is installed but its import fails: OSError: libcuda.so.1: cannot open"
    }


def test_broken_triton(tmp_path: Path) -> None:
    """Plain torch computes, and capabilities() and a warning say so."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").write_text("raise OSError('libtriton.so: invalid ELF header')\n")
    seen, log = state(
        path=tmp_path,
        after="""
from spectral_fast.backends import reference, reference_stats, triton
S = torch.rand(4, 9)
A = torch.rand(2, 5, 4)
for got, want in (
    (triton.stats_from_svdvals(S, 9, 9), reference_stats.stats_from_svdvals(S, 9, 9)),
    (triton.fit_powerlaw(S, None), reference_stats.fit_powerlaw(S, None)),
    (triton.spectral_stats(A, None), reference_stats.spectral_stats(A, None)),
    (triton.gram_product(A, torch.ones(2, 4, 1)), reference.gram_product(A, torch.ones(2, 4, 1))),
):
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
""",
    )
    triton_log = backend.__name__
    reason = "triton is installed but its import fails: OSError: libtriton.so: invalid ELF header"
    assert seen["found"]["kernels"] == []
    assert set(seen["found"]["no_kernels"]) == {"svdvals_ex", *backend.OPERATORS}
    assert all(reason in why for why in seen["found"]["no_kernels"].values())
    assert (
        log.count(f"WARNING:{triton_log}:statistics and gram_product on the GPU run in plain torch: {reason}")
        == 1
    )
