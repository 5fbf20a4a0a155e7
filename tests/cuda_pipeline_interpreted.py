"""The whole GPU pipeline on a pretend device; test_triton_numerics.py runs this file.

`svdvals` and the rest are called with tensors that say they are on a GPU, and go through the dispatcher as
such. Below it everything is what runs on a GPU, host code, CUDA sources and Triton kernels, but for three
things: memory is the CPU's, CUDA kernels run in the emulator, and Triton kernels in triton's interpreter
(TRITON_INTERPRET has to be set before triton is imported, hence a process of its own).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import spectral_fast as sf
from spectral_fast import _ops
from spectral_fast.backends import cuda as backend
from spectral_fast.backends import triton as statistics
from spectral_fast.cuda import pipeline, workspace
from spectral_fast.cuda.workspace import Chip
from spectral_fast.stats import scalar_fields
from tests.cuda_emulator import Emulator
from tests.oracles.accuracy import exact_values, judge
from tests.oracles.zoo import FLOAT64_ONLY, ZOO
from tests.test_accuracy import CASES
from tests.test_stats_values import same_bits

KERNELS = {
    _ops.svdvals_ex: backend.svdvals_ex,
    _ops.spectral_stats: statistics.spectral_stats,
    _ops.stats_from_svdvals: statistics.stats_from_svdvals,
}

CHIPS = {
    "sm_90": Chip(227 * 1024, fast_float64=True),
    "sm_89": Chip(99 * 1024, fast_float64=False),
}


class Pretend(Tensor):
    """A tensor that says it is on a GPU. Operators of ours run as they are registered there."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretend:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device="cuda"
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inner = [arg.inner if isinstance(arg, Pretend) else arg for arg in args]
        out = KERNELS.get(func, func)(*inner, **(kwargs or {}))
        if isinstance(out, tuple | list):
            return type(out)(map(Pretend, out))
        return Pretend(out) if isinstance(out, Tensor) else out


@pytest.fixture(autouse=True)
def pretend_device(monkeypatch: pytest.MonkeyPatch) -> None:
    use_chip("sm_90", monkeypatch)
    monkeypatch.setattr(pipeline, "launch", Emulator(order="forward"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)


def use_chip(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "chip_of", lambda device: CHIPS[name])


def svdvals(A: Tensor, driver: str | None = "bidiag") -> Tensor:
    """By our kernels, unless asked otherwise: "bidiag" raises where these do not run."""
    S = sf.svdvals(Pretend(A), driver=driver)
    assert isinstance(S, Pretend)
    return S.inner


def check(got: Tensor, A: Tensor, times_the_bound: float = 1.0) -> None:
    """The contract, value by value, for each matrix."""
    assert got.dtype == _ops.values_dtype(A.dtype)
    assert (got.diff(dim=-1) <= 0).all()
    assert (got >= 0).all()
    for a, s in zip(A.reshape(-1, *A.shape[-2:]), got.reshape(-1, got.shape[-1]), strict=True):
        accuracy = judge(a, s, exact(a))
        assert accuracy.error <= times_the_bound * accuracy.allowed, accuracy


_exact: dict[bytes, np.ndarray] = {}


def exact(a: Tensor) -> np.ndarray:
    """exact_values, once a matrix: those of float64 take seconds."""
    key = a.contiguous().view(torch.uint8).numpy().tobytes()
    if key not in _exact:
        _exact[key] = exact_values(a)
    return _exact[key]


def matrix(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_stage_of_a_batch(dtype: torch.dtype, chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_chip(chip, monkeypatch)
    A = matrix((3, 192, 192), dtype)
    check(svdvals(A), A)


@pytest.mark.parametrize(
    ("dtype", "name", "chip"),
    [
        pytest.param(
            *case, chip, marks=() if case[0] == torch.float32 and chip == "sm_90" else pytest.mark.slow
        )
        for chip in CHIPS
        for case in CASES
        if chip == "sm_90" or case[0] == torch.float32  # float64 is computed in one way
    ],
    ids=lambda v: str(v).removeprefix("torch."),
)
def test_zoo(dtype: torch.dtype, name: str, chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two panels and a rest; tall through QR; small ones directly."""
    use_chip(chip, monkeypatch)
    # In float32 throughout this one errs by 2.26 eps; on some machines LAPACK errs by 0.83 (README, Limits).
    times_the_bound = 1.15 if (chip, name) == ("sm_89", "heavy_tailed_entries") else 1.0
    for shape in ((90, 75), (140, 70), (40, 33)):
        a = {**ZOO, **FLOAT64_ONLY}[name](*shape, torch.Generator().manual_seed(0)).to(dtype)
        check(svdvals(a), a, times_the_bound)


@pytest.mark.parametrize(
    "shape",
    [
        *[(2, 320, 97), (97, 320), (2, 150, 100), (2, 2, 65, 65)],  # tall, wide, between, batches
        *[(5, 40, 30), (2, 64, 128), (2, 300, 20), (2, 20, 300)],  # directly; after QR
        *[(3, 1, 1), (2, 7, 1), (1, 500), (2, 2), (33, 32), (3, 128, 64), (129, 64)],
    ],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_shapes(shape: tuple[int, ...]) -> None:
    A = matrix(shape, torch.float32)
    check(svdvals(A), A)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (2, 4, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    got = svdvals(torch.zeros(shape))
    assert got.shape == torch.linalg.svdvals(torch.zeros(shape)).shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions(dtype: torch.dtype) -> None:
    A = matrix((2, 100, 70), dtype)
    got = svdvals(A)
    assert got.dtype == torch.float32
    check(got, A.to(torch.float32))


def test_strides() -> None:
    whole = matrix((70, 4, 100, 2), torch.float32)
    for A in (
        whole[:, :3, :, 1].permute(1, 0, 2),
        whole[:, 0, :, 0].mT,
        whole[1:, 2, ::3, 0].expand(2, -1, -1),
    ):
        assert not A.is_contiguous()
        assert same_bits(svdvals(A), svdvals(A.contiguous()))
        check(svdvals(A), A)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e37])
def test_scales(scale: float) -> None:
    """A power of two comes out as it went in; others within the bound."""
    A = matrix((2, 80, 70), torch.float32) / 8
    check(svdvals(A * scale), A * scale)
    two = 2.0 ** round(torch.tensor(scale).log2().item())
    assert same_bits(svdvals(A * two), svdvals(A) * two)


def test_zero_matrices() -> None:
    A = matrix((3, 100, 80), torch.float32)
    A[1] = 0
    got = svdvals(A)
    assert (got[1] == 0).all()
    check(got, A)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(3, 100, 80), (3, 30, 20), (3, 300, 20)])
def test_a_bad_matrix_spoils_only_itself(shape: tuple[int, ...], bad: float) -> None:
    A = matrix(shape, torch.float32)
    good = svdvals(A)
    A[1, 3, 5] = bad
    S, info = sf.svdvals_ex(Pretend(A))
    assert info.inner.tolist() == [0, 1, 0]
    assert S.inner[1].isnan().all()
    assert same_bits(S.inner[0], good[0])
    assert same_bits(S.inner[2], good[2])
    with pytest.raises(torch.linalg.LinAlgError, match=r"Batch element 1\).*non-finite"):
        svdvals(A)


@pytest.mark.parametrize("shape", [(5, 100, 80), (5, 30, 20), (5, 200, 70)])
def test_chunks_change_no_bit(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    A = matrix(shape, torch.float32)
    whole = svdvals(A)
    types = pipeline.types_for(torch.float32, CHIPS["sm_90"])
    chip = CHIPS["sm_90"]._replace(
        workspace_bytes=2 * workspace.matrix_bytes(*shape[1:], types, CHIPS["sm_90"]) + 1
    )
    monkeypatch.setattr(pipeline, "chip_of", lambda device: chip)
    assert workspace.chunk(*shape, types, chip) == 2
    assert same_bits(svdvals(A), whole)
    for i in range(5):
        assert same_bits(svdvals(A[i]), whole[i])


class Allocations(TorchDispatchMode):
    """Adds up what is allocated, as if nothing were ever freed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not any(
            isinstance(arg, Tensor) and arg.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
            for arg in args
        ):
            self.bytes += out.untyped_storage().nbytes()
        return out


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 100, 80), (3, 30, 20), (3, 200, 70), (3, 300, 20), (1, 900, 70)])
def test_the_workspace_is_what_the_function_says(
    shape: tuple[int, ...], dtype: torch.dtype, chip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, m, n = shape
    A = matrix(shape, dtype)
    S, info = A.new_empty((batch, n)), torch.zeros(batch, dtype=torch.int32)
    with Allocations() as found:
        pipeline.svdvals(A, S, info, CHIPS[chip])
    types = pipeline.types_for(dtype, CHIPS[chip])
    said = batch * workspace.matrix_bytes(m, n, types, CHIPS[chip])
    assert 0.9 * said <= found.bytes <= said


def test_statistics_follow_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "svdvals_ex", backend.svdvals_ex)  # what the dispatcher does on a device
    A = matrix((2, 90, 70), torch.float32)
    got = sf.spectral_stats(Pretend(A), return_svdvals=True)
    want = sf.stats_from_svdvals(got.svdvals.inner, shape=(90, 70))
    assert same_bits(got.svdvals.inner, svdvals(A))
    for name in scalar_fields():
        assert getattr(got, name).device.type == "cuda"
        torch.testing.assert_close(getattr(got, name).inner, getattr(want, name), rtol=1e-10, atol=0)


def test_drivers(caplog: pytest.LogCaptureFixture) -> None:
    A = matrix((2, 90, 70), torch.float32)
    with caplog.at_level("DEBUG", logger="spectral_fast"):
        assert same_bits(svdvals(A, None), svdvals(A, "bidiag"))
        assert "cuda:bidiag [band -> bidiagonal -> values]" in caplog.messages[-1]
        torch.testing.assert_close(svdvals(A, "torch"), torch.linalg.svdvals(A), rtol=0, atol=0)
        assert "reference:torch" in caplog.messages[-1]


def test_thread_order_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    A = matrix((2, 230, 130), torch.float32)
    forward = svdvals(A)
    for order in ("reverse", "random"):
        monkeypatch.setattr(pipeline, "launch", Emulator(order=order))
        assert same_bits(svdvals(A), forward)


def test_small_matrices_that_a_block_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 x 64 in float64 are 65 KiB of shared memory."""

    def limited(*args: Any) -> None:
        assert len(args) < 7 or args[6] <= chip.shared_bytes
        emulate(*args)

    chip, emulate = Chip(64 * 1024, fast_float64=False), Emulator(order="forward")
    monkeypatch.setattr(pipeline, "launch", limited)
    monkeypatch.setitem(CHIPS, "sm_75", chip)
    use_chip("sm_75", monkeypatch)
    A = matrix((2, 128, 64), torch.float64)
    check(svdvals(A), A)
