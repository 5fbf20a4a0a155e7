"""Whether the spectral_fast that is installed here works, with nothing of the checkout beside it.

    python tests/installed_smoke.py        from any folder that holds no spectral_fast

Prints, as JSON, where the module lies and what it says of itself; an exception otherwise.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spectral_fast

# How far sums over values that err by 2 eps sigma_1 each may be off, relative, with r = 96 values and a
# stable rank rho of 24 (a square Gaussian matrix): sum sigma^2 by 4 eps sqrt(r / rho) and sigma_1^2 by 4 eps,
# both in the stable rank; sum sigma, which is at least rho sigma_1, by 2 eps r / rho.
RELATIVE = 12 * np.finfo(np.float32).eps


def check_values() -> None:
    """The contract of float32 up to 128 values; the oracle's own error, in float64, is 1e-9 of the bound."""
    generator = np.random.default_rng(0)
    for shape in ((3, 96, 96), (2, 128, 40), (7, 9, 31)):
        A = generator.standard_normal(shape).astype(np.float32)
        want = np.linalg.svd(A.astype(np.float64), compute_uv=False)
        for isa in spectral_fast.capabilities()["cpu"]["runnable_isas"]:
            spectral_fast._cpu.use_isa(isa)
            got = spectral_fast.svdvals(torch.from_numpy(A)).numpy()
            bound = 2 * np.finfo(np.float32).eps * want[..., :1]
            assert (abs(got - want) <= bound).all(), (shape, isa, (abs(got - want) / bound).max())


def check_statistics() -> None:
    A = np.random.default_rng(1).standard_normal((96, 96)).astype(np.float32)
    want = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    stats = spectral_fast.spectral_stats(torch.from_numpy(A))
    np.testing.assert_allclose(float(stats.stable_rank), (want**2).sum() / want[0] ** 2, rtol=RELATIVE)
    np.testing.assert_allclose(float(stats.nuclear_norm), want.sum(), rtol=RELATIVE)
    assert stats.alpha.isfinite()


def check_errors() -> None:
    """Exceptions that leave C++, with another library of pybind11 modules (torch) in the process."""
    for call in (
        lambda: spectral_fast._cpu.use_isa("none such"),
        lambda: spectral_fast._cpu.svdvals(0, 99, (1, 1), (1, 1), 0, 0, 1, False),
    ):
        try:
            call()
        except ValueError:
            continue
        raise AssertionError("no ValueError")


def check_command() -> None:
    """``spectral-fast analyze`` on a .npy, as a program of its own."""
    A = np.random.default_rng(2).standard_normal((64, 48)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        weights, results = Path(folder, "weights.npy"), Path(folder, "results.json")
        np.save(weights, A)
        program = Path(sys.executable).parent / "spectral-fast"
        subprocess.run(
            [program, "analyze", weights, "--json", results], cwd=folder, check=True, stdout=sys.stderr
        )
        (matrix,) = json.loads(results.read_text())["matrices"]
    want = np.linalg.svd(A.astype(np.float64), compute_uv=False)[0]
    np.testing.assert_allclose(matrix["spectral_norm"], want, rtol=2 * np.finfo(np.float32).eps)


def main() -> None:
    check_values()
    check_statistics()
    check_errors()
    check_command()
    capabilities: dict[str, Any] = spectral_fast.capabilities()
    print(json.dumps({"file": spectral_fast.__file__, "module": spectral_fast._cpu.__file__, **capabilities}))


if __name__ == "__main__":
    main()
