"""capabilities(), explain() and the instruction set that was asked for: nothing falls back silently."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

import spectral_fast as sf
from spectral_fast import _cpu
from spectral_fast.backends import cuda
from spectral_fast.heuristics import DRIVERS


def test_capabilities_are_plain_data() -> None:
    found = sf.capabilities()
    assert json.loads(json.dumps(found)) == found
    assert found["version"] == sf.__version__
    assert set(found["cpu"]["runnable_isas"]) <= set(found["cpu"]["built_isas"])
    assert found["cpu"]["isa"] in found["cpu"]["runnable_isas"]


@pytest.mark.parametrize("driver", [None, *DRIVERS])
def test_what_is_listed_runs_and_what_is_not_raises(driver: str | None) -> None:
    A = torch.randn(6, 4)
    if driver is None or driver in sf.capabilities()["drivers"]["cpu"]:
        # "gram" is good to 1e-7 relative to the largest value, LAPACK to 1e-6 at any size
        torch.testing.assert_close(
            sf.svdvals(A, driver=driver), torch.linalg.svdvals(A), rtol=0, atol=1e-6 * float(A.norm())
        )
        sf.explain(A.shape, driver=driver)
    else:
        with pytest.raises(ValueError, match=f"{driver!r} is not available"):
            sf.svdvals(A, driver=driver)
        with pytest.raises(ValueError, match=f"{driver!r} is not available"):
            sf.explain(A.shape, driver=driver)


TWO_STAGES = ("band", "bidiagonal", "values")


@pytest.mark.parametrize(
    ("shape", "dtype", "device", "driver", "expected"),
    [
        ((12, 768, 768), torch.float32, "cpu", None, ("cpu", "bidiag", TWO_STAGES)),
        ((100, 128), torch.float32, "cpu", None, ("cpu", "bidiag", ("bidiagonal", "values"))),
        ((20, 64, 100), torch.float32, "cpu", None, ("cpu", "bidiag", ("group",))),
        ((3072, 768), torch.bfloat16, "cpu", None, ("cpu", "bidiag", ("reduce", *TWO_STAGES))),
        ((768, 3072), torch.float64, "cpu", "bidiag", ("cpu", "bidiag", ("reduce", *TWO_STAGES))),
        ((768, 3072), torch.float64, "cpu", "gram", ("cpu", "gram", ("reduce", *TWO_STAGES))),
        ((768, 768), torch.float64, "cpu", "gram", ("reference", "gram", None)),
        ((3072, 128), torch.float64, "cpu", "gram", ("reference", "gram", None)),
        ((5, 4), torch.float32, "cpu", "torch", ("reference", "torch", ("torch.linalg.svdvals",))),
        ((5, 4), torch.complex64, "cpu", None, ("reference", "torch", ("torch.linalg.svdvals",))),
        ((5, 4), torch.complex64, "cuda", None, ("reference", "torch", ("torch.linalg.svdvals",))),
        ((5, 4), torch.float32, "cuda", "torch", ("reference", "torch", ("torch.linalg.svdvals",))),
        ((5, 4), torch.float32, "cuda", "gesvdj", ("reference", "gesvdj", None)),
    ],
)
def test_explain(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, driver: str | None, expected: tuple
) -> None:
    plan = sf.explain(shape, dtype, device, driver)
    assert (plan.backend, plan.driver) == expected[:2]
    assert expected[2] in (None, plan.stages)
    assert plan.reason in str(plan)


@pytest.mark.parametrize(
    ("shape", "stages"),
    [
        ((5, 4), ("bidiagonal", "values")),
        ((7, 64, 128), ("bidiagonal", "values")),
        ((129, 64), ("reduce", "bidiagonal", "values")),
        ((65, 65), TWO_STAGES),
        ((3072, 768), ("reduce", *TWO_STAGES)),
    ],
)
def test_explain_on_cuda(
    shape: tuple[int, ...], stages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "load", lambda: (object(), ""))
    for driver in (None, "bidiag"):
        plan = sf.explain(shape, torch.bfloat16, "cuda", driver)
        assert (plan.backend, plan.driver, plan.stages) == ("cuda", "bidiag", stages)

    monkeypatch.setattr(cuda, "load", lambda: (None, "CuPy is not installed"))
    plan = sf.explain(shape, torch.bfloat16, "cuda")
    assert (plan.backend, plan.driver) == ("reference", "torch")
    assert plan.reason == "the CUDA kernels do not run here: CuPy is not installed"
    with pytest.raises(ValueError, match="'bidiag' is not available on this GPU: CuPy is not installed"):
        sf.explain(shape, device="cuda", driver="bidiag")
    assert "bidiag" not in sf.capabilities()["drivers"]["cuda"]


@pytest.mark.parametrize("shape", [(2**26 + 1, 5), (3, 5, 2**26 + 1)])
def test_a_side_beyond_the_offsets_of_a_panel(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "load", lambda: (object(), ""))
    assert 31 * 2**26 + 2**26 <= 2**31  # row 2^26 of column 31, in 32 bits
    assert sf.explain((2**26, 5), device="cuda").backend == "cuda"
    plan = sf.explain(shape, device="cuda")
    assert plan.backend == "reference"
    assert plan.reason == "the CUDA kernels do not run here: a side is longer than 67108864"
    with pytest.raises(ValueError, match="'bidiag' is not available on this GPU: a side is longer"):
        sf.explain(shape, device="cuda", driver="bidiag")
    assert sf.explain(shape).backend == "cpu"


def test_explain_names_the_stages_that_run() -> None:
    """heuristics.py and csrc/cpu/heuristics.inl are two texts of one decision."""
    for n in (1, 8, 9, 63, 64, 65, 128, 129, 300):
        for m in (n, n + 1, 5 * n // 3, 5 * n // 3 + 1, 8192 // n, 8192 // n + 1, 7 * n):
            for batch in (1, 7, 8, 1000):
                expected = tuple(_cpu.stages(m, n, batch))
                assert sf.explain((batch, m, n)).stages == expected
                assert sf.explain((1, batch, n, m)).stages == expected


def test_explain_refuses_what_the_call_would() -> None:
    with pytest.raises(ValueError, match="'fastest' is unknown: choose from bidiag, gram, torch or None"):
        sf.explain((3, 3), driver="fastest")
    with pytest.raises(ValueError, match=r"does not take torch\.int64"):
        sf.explain((3, 3), torch.int64)
    with pytest.raises(ValueError, match="negative size"):
        sf.explain((-3, 3))
    with pytest.raises(ValueError, match="needs two dimensions"):
        sf.explain((3,))
    with pytest.raises(ValueError, match=r"'jacobi' is not available for torch\.float32 on cuda"):
        sf.explain((3, 3), device="cuda", driver="jacobi")
    with pytest.raises(ValueError, match=r"'gesvd' is not available for torch\.float32 on cpu"):
        sf.explain((3, 3), driver="gesvd")
    with pytest.raises(TypeError, match=r"explain\(A\.shape, A\.dtype, A\.device\)"):
        sf.explain(torch.eye(3))


def test_the_debug_log_says_which_path_ran(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="spectral_fast"):
        sf.svdvals(torch.ones(2, 30, 4))
        sf.svdvals(torch.ones(3, 3), driver="gram")
    assert "svdvals(2, 30, 4) cpu cpu:bidiag [reduce -> bidiagonal -> values]" in caplog.messages[0]
    assert "reference:gram" in caplog.messages[1]


def _with_isa(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from spectral_fast import _cpu; print(_cpu.current_isa())"],
        env={**os.environ, "SPECTRAL_FAST_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )


def test_instruction_set_from_the_environment() -> None:
    assert _with_isa("baseline").stdout.strip() == "baseline"
    assert _with_isa("").stdout.strip() == _cpu.runnable_isas()[-1]
    refused = _with_isa("avx1024")
    assert refused.returncode != 0
    assert (
        "instruction set 'avx1024' is not available: this build on this CPU runs baseline" in refused.stderr
    )


def test_unknown_instruction_set_changes_nothing() -> None:
    before = _cpu.current_isa()
    with pytest.raises(ValueError, match="is not available"):
        _cpu.use_isa("neon")
    assert _cpu.current_isa() == before
