"""svdvals in torch.linalg.svdvals' place: torch's sample inputs, layouts, out=, errors compared live."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

import spectral_fast as sf
from tests.oracles.accuracy import judge

OPINFO = next(op for op in op_db if op.name == "linalg.svdvals")


def assert_same_values(A: Tensor, values: Tensor) -> None:
    """Every matrix of the batch within the bound; shape, dtype and device as torch's."""
    expected = torch.linalg.svdvals(A)
    assert values.shape == expected.shape
    assert values.dtype == expected.dtype
    assert values.device == expected.device
    if values.numel() == 0:
        return
    matrices = A.detach().reshape(-1, *A.shape[-2:])
    for matrix, row in zip(matrices, values.detach().reshape(-1, values.shape[-1]), strict=True):
        accuracy = judge(matrix, row)
        assert accuracy.holds, accuracy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_torch_sample_inputs(dtype: torch.dtype, requires_grad: bool) -> None:
    samples = list(OPINFO.sample_inputs("cpu", dtype, requires_grad=requires_grad))
    assert len(samples) >= 10
    for sample in samples:
        values = sf.svdvals(sample.input, *sample.args, **sample.kwargs)
        assert_same_values(sample.input, values)
        assert values.requires_grad == requires_grad
        if requires_grad and values.numel():
            (ours,) = torch.autograd.grad(values.sum(), sample.input)
            (theirs,) = torch.autograd.grad(torch.linalg.svdvals(sample.input).sum(), sample.input)
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_goes_to_torch(dtype: torch.dtype) -> None:
    for sample in OPINFO.sample_inputs("cpu", dtype):
        A = sample.input
        assert torch.equal(sf.svdvals(A), torch.linalg.svdvals(A))
        S, info = sf.svdvals_ex(A)
        assert torch.equal(S, torch.linalg.svdvals(A))
        assert info.shape == A.shape[:-2]


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.randn(20, 30).mT,
    "every other": lambda: torch.randn(40, 60)[::2, ::3],
    "columns of a wide one": lambda: torch.randn(30, 100)[:, 10:25],
    "batch inside": lambda: torch.randn(6, 5, 4).permute(2, 0, 1),
    "permuted batch": lambda: torch.randn(2, 3, 7, 5).transpose(0, 1),
    "expanded batch": lambda: torch.randn(6, 4).expand(3, 6, 4),
    "expanded row": lambda: torch.randn(1, 9).expand(7, 9),
    "expanded scalar": lambda: torch.randn(1, 1).expand(5, 4),
    "storage offset": lambda: torch.randn(200)[50:170].view(10, 12),
    "overlapping windows": lambda: torch.randn(40).unfold(0, 10, 3),
    "flipped": lambda: torch.randn(8, 9).flip(0),
    "diagonal view": lambda: torch.randn(5, 5, 6, 6).diagonal(dim1=0, dim2=1).permute(2, 0, 1),
    "negative bit": lambda: torch.randn(6, 4, dtype=torch.complex64).conj().imag,
    "zero tensor": lambda: torch._efficientzerotensor((3, 4)),
    "channels last": lambda: torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last),
    "inference tensor": lambda: _inference(torch.randn(4, 6)),
}


def _inference(A: Tensor) -> Tensor:
    with torch.inference_mode():
        return A.clone()


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_strides(name: str) -> None:
    A = LAYOUTS[name]()
    before = A.clone()
    values = sf.svdvals(A)
    assert_same_values(A.clone(), values)
    # The kernel sees numbers, not strides: the same bits as from a contiguous copy.
    assert torch.equal(values, sf.svdvals(before.contiguous()))
    assert torch.equal(A, before), "the input was changed"


@pytest.mark.parametrize(
    "shape", [(0, 0), (0, 3), (3, 0), (0, 4, 3), (2, 0, 3), (2, 3, 0), (2, 0, 4, 4), (1, 1, 1, 1)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("driver", [None, "gram", "torch"])
def test_empty(shape: tuple[int, ...], dtype: torch.dtype, driver: str | None) -> None:
    S, info = sf.svdvals_ex(torch.zeros(shape, dtype=dtype), driver=driver)
    assert S.shape == torch.linalg.svdvals(torch.zeros(shape)).shape
    assert S.dtype == torch.float32
    assert info.shape == shape[:-2]
    assert (info == 0).all()
    assert not S.isnan().any()


def test_meta_and_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for A in (torch.empty(2, 5, 3, device="meta"), torch.empty(2, 5, 3, device="meta").bfloat16()):
        S, info = sf.svdvals_ex(A)
        assert (S.shape, S.dtype, S.device.type) == ((2, 3), torch.float32, "meta")
        assert (info.shape, info.dtype) == ((2,), torch.int32)
        assert sf.spectral_stats(A).stable_rank.shape == (2,)
        assert sf.spectral_stats(A).n_tail.dtype == torch.int64
    with FakeTensorMode():
        assert sf.svdvals(torch.empty(4, 6)).shape == (4,)
        assert sf.fit_powerlaw(torch.empty(3, 6)).n_tail.shape == (3,)


def test_default_device_and_dtype_are_not_for_us() -> None:
    """Outputs lie beside the input, whatever torch.empty would do without being told."""
    A = torch.randn(2, 5, 3)
    expected, stats = sf.svdvals(A), sf.spectral_stats(A)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(sf.svdvals(A), expected)
            assert sf.svdvals_ex(A).info.tolist() == [0, 0]
            assert torch.equal(sf.spectral_stats(A).alpha, stats.alpha)
            assert torch.equal(sf.fit_powerlaw(expected, xmin=0.5).n_tail, (expected >= 0.5).sum(-1))
    finally:
        torch.set_default_dtype(torch.float32)


# out=


@pytest.mark.parametrize("A", [torch.randn(2, 5, 3), torch.randn(2, 5, 3).bfloat16()], ids=["f32", "bf16"])
def test_out(A: Tensor) -> None:
    expected = sf.svdvals(A)
    out = torch.empty(2, 3)
    assert sf.svdvals(A, out=out) is out
    assert torch.equal(out, expected)
    strided = torch.empty(3, 2).T
    assert sf.svdvals(A, out=strided) is strided
    assert torch.equal(strided, expected)
    assert strided.stride() == (1, 2)
    empty = torch.empty(0)
    sf.svdvals(A, out=empty)
    assert torch.equal(empty, expected)


def test_out_of_wrong_shape_is_resized_with_torchs_warning() -> None:
    A, heard = torch.randn(2, 5, 3), {}
    for function in (sf.svdvals, torch.linalg.svdvals):
        out = torch.empty(5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function(A, out=out)
        assert out.shape == (2, 3)
        heard[function] = [(w.category, str(w.message).split("(Triggered")[0]) for w in caught]
    assert heard[sf.svdvals] == heard[torch.linalg.svdvals]
    assert len(heard[sf.svdvals]) == 1


# Errors. Each entry is called with our function and with torch's; type and message must be equal.


def _with_nan(*shape: int, at: tuple[int, ...] = ()) -> Tensor:
    A = torch.ones(shape)
    A[at] = torch.nan
    return A


BAD: dict[str, Callable[[Any], Any]] = {
    "no dimension": lambda f: f(torch.tensor(1.0)),
    "one dimension": lambda f: f(torch.randn(3)),
    "one dimension, batch size 0": lambda f: f(torch.randn(0)),
    "int64": lambda f: f(torch.ones(3, 3, dtype=torch.int64)),
    "uint8": lambda f: f(torch.ones(3, 3, dtype=torch.uint8)),
    "bool": lambda f: f(torch.ones(3, 3, dtype=torch.bool)),
    "float8": lambda f: f(torch.ones(3, 3).to(torch.float8_e4m3fn)),
    "sparse COO": lambda f: f(torch.eye(3).to_sparse()),
    "sparse CSR": lambda f: f(torch.eye(3).to_sparse_csr()),
    "mkldnn": lambda f: f(torch.eye(3).to_mkldnn()),
    "nested": lambda f: f(torch.nested.nested_tensor([torch.eye(2), torch.eye(3)])),
    "NaN": lambda f: f(_with_nan(3, 3)),
    "NaN with grad": lambda f: f(_with_nan(3, 3).requires_grad_()),
    "NaN in a batch": lambda f: f(_with_nan(4, 3, 2, at=(2, 0, 0))),
    "NaN in two dimensions of batch": lambda f: f(_with_nan(2, 3, 4, 3, at=(1, 1))),
    "two matrices with NaN": lambda f: f(_with_nan(5, 3, 3, at=(slice(3, 5),))),
    "torch's driver on the CPU": lambda f: f(torch.eye(3), driver="gesvd"),
    "unknown driver": lambda f: f(torch.eye(3), driver="fastest"),
    "out int": lambda f: f(torch.eye(3), out=torch.empty(3, dtype=torch.int64)),
    "out double": lambda f: f(torch.eye(3), out=torch.empty(3, dtype=torch.float64)),
    "out float for double": lambda f: f(torch.eye(3).double(), out=torch.empty(3)),
    "out half": lambda f: f(torch.eye(3), out=torch.empty(3, dtype=torch.float16)),
    "out complex": lambda f: f(torch.eye(3), out=torch.empty(3, dtype=torch.complex64)),
    "out on another device": lambda f: f(torch.eye(3), out=torch.empty(3, device="meta")),
    "out with grad": lambda f: f(torch.eye(3), out=torch.empty(3, requires_grad=True)),
    "A with grad and out": lambda f: f(torch.eye(3, requires_grad=True), out=torch.empty(3)),
    "out a string": lambda f: f(torch.eye(3), out="values"),
    "A a string": lambda f: f("weights"),
    "A None": lambda f: f(None),
    "A a list": lambda f: f([[1.0]]),
    "A an array": lambda f: f(np.eye(3)),
    "driver a number": lambda f: f(torch.eye(3), driver=3),
}


def _raised(call: Callable[[Any], Any], function: Any) -> tuple[type, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as caught:  # noqa: PT011 - compared by the caller
            call(function)
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_same_error_as_torch(name: str) -> None:
    assert _raised(BAD[name], sf.svdvals) == _raised(BAD[name], torch.linalg.svdvals)


@pytest.mark.parametrize("call", [lambda f: f(), lambda f: f(torch.eye(2), "gesvd"), lambda f: f(A=1, B=2)])
def test_same_signature_errors(call: Callable[[Any], Any]) -> None:
    """Python's words and torch's parser's differ; the type does not."""
    ours, theirs = _raised(call, sf.svdvals)[0], _raised(call, torch.linalg.svdvals)[0]
    assert ours is theirs is TypeError


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("driver", [None, "gram", "torch"])
def test_nonfinite_is_named_and_stays_alone(value: float, dtype: torch.dtype, driver: str | None) -> None:
    """Infinities too, where torch may return numbers; the neighbours keep their bits."""
    A = torch.randn(2, 3, 6, 5).to(dtype)
    clean = sf.svdvals(A, driver=driver)
    A[1, 0, 5, 4] = value
    with pytest.raises(torch.linalg.LinAlgError, match=r"\(Batch element 3\).*non-finite"):
        sf.svdvals(A, driver=driver)
    with pytest.raises(torch.linalg.LinAlgError, match=r"\(Batch element 3\).*non-finite"):
        sf.svdvals_ex(A, driver=driver, check_errors=True)
    S, info = sf.svdvals_ex(A, driver=driver)
    assert info.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert S[1, 0].isnan().all()
    good = info == 0
    assert torch.equal(S[good], clean[good])


def test_nonfinite_complex_is_named_too() -> None:
    A = torch.randn(3, 4, 3, dtype=torch.complex64)
    A[1, 2, 2] = complex(0, torch.nan)
    S, info = sf.svdvals_ex(A)
    assert info.tolist() == [0, 1, 0]
    assert S[1].isnan().all()
    assert torch.equal(S[0::2], torch.linalg.svdvals(A[0::2]))
    with pytest.raises(torch.linalg.LinAlgError, match=r"\(Batch element 1\)"):
        sf.svdvals(A)


def test_drivers_of_ours_that_do_not_exist_yet_say_so() -> None:
    with pytest.raises(ValueError, match=r"'jacobi' is not available for torch.float32 on cpu"):
        sf.svdvals(torch.eye(3), driver="jacobi")
    with pytest.raises(ValueError, match=r"'bidiag' is not available for torch.complex64 on cpu"):
        sf.svdvals(torch.eye(3, dtype=torch.complex64), driver="bidiag")
    with pytest.raises(ValueError, match=r"'jacobi' is not available for torch.float32 on meta"):
        sf.svdvals(torch.empty(3, 3, device="meta"), driver="jacobi")


def test_half_precisions_are_more_than_torch_accepts() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        A = torch.eye(3, dtype=dtype)
        with pytest.raises(NotImplementedError):
            torch.linalg.svdvals(A)
        assert torch.equal(sf.svdvals(A), torch.ones(3))


def test_statistics_name_what_is_wrong() -> None:
    with pytest.raises(TypeError, match=r"spectral_stats\(\).*not str"):
        sf.spectral_stats("weights")
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        sf.spectral_stats(torch.ones(3))
    with pytest.raises(ValueError, match=r"torch.int64"):
        sf.spectral_stats(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"sparse"):
        sf.spectral_stats(torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match=r"complex64"):
        sf.spectral_stats(torch.ones(3, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"2 singular values, S has 3"):
        sf.stats_from_svdvals(torch.ones(3), shape=(2, 5))
    with pytest.raises(ValueError, match=r"shape must be \(m, n\), got \(3, 3, 3\)"):
        sf.stats_from_svdvals(torch.ones(3), shape=(3, 3, 3))
    for shape in (8, (3.0, 5), (True, 3), ("a", 3)):
        with pytest.raises(ValueError, match=r"shape must be \(m, n\), got"):
            sf.stats_from_svdvals(torch.ones(3), shape=shape)
    for k in (0, 2.5, True):
        with pytest.raises(ValueError, match=r"k must be an integer of at least 1"):
            sf.hill_alpha(torch.ones(3), k=k)
    with pytest.raises(ValueError, match=r"xmin of shape \(2,\) does not broadcast to the batch \(3,\)"):
        sf.fit_powerlaw(torch.ones(3, 5), xmin=torch.ones(2))
    with pytest.raises(ValueError, match=r"xmin must be real"):
        sf.fit_powerlaw(torch.ones(3, 5), xmin=torch.tensor(1j))
    with pytest.raises(ValueError, match=r"xmin must be real and dense"):
        sf.fit_powerlaw(torch.ones(3, 5), xmin=torch.ones(3).to_sparse())
    # On the meta device nothing is computed: the fit would be memory that nobody wrote.
    with pytest.raises(RuntimeError, match=r"xmin is on meta and evals on cpu: move one"):
        sf.fit_powerlaw(torch.ones(3, 5), xmin=torch.ones(3, device="meta"))
    for xmin in ("1", True, [1.0], 1j):
        with pytest.raises(TypeError, match=r"'xmin' must be float, Tensor or None, not"):
            sf.fit_powerlaw(torch.ones(3, 5), xmin=xmin)
    nested = torch.nested.nested_tensor([torch.eye(2), torch.eye(3)])
    with pytest.raises(ValueError, match=r"nested"):
        sf.spectral_stats(nested)
    with pytest.raises(ValueError, match=r"nested"):
        sf.fit_powerlaw(nested)
    for function in (sf.fit_powerlaw, sf.hill_alpha, sf.ranksize_slope, sf.stats_from_svdvals):
        with pytest.raises(TypeError, match=r"must be Tensor, not list"):
            function([1.0, 2.0])
        with pytest.raises(ValueError, match=r"bool"):
            function(torch.ones(3, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"float8_e4m3fn"):
            function(torch.ones(3).to(torch.float8_e4m3fn))
        with pytest.raises(ValueError, match=r"shape \(\)"):
            function(torch.tensor(1.0))


def test_statistics_of_a_nonfinite_matrix_are_nan_and_stay_alone() -> None:
    A = torch.randn(3, 8, 6)
    clean = sf.spectral_stats(A, return_svdvals=True)
    A[1, 0, 0] = torch.inf
    stats = sf.spectral_stats(A, return_svdvals=True)
    for name, value in vars(stats).items():
        assert torch.equal(value[0::2], getattr(clean, name)[0::2]), name
        assert value[1].isnan().all() if value.is_floating_point() else value[1] == 0, name
