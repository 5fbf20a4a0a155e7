"""Derivatives in every eager mode: reverse, forward, twice, and under torch.func's transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import spectral_fast as sf
from spectral_fast._ops import FITTED_FIELDS, SMOOTH_FIELDS

Function = Callable[[Tensor], Tensor]


def distinct(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Matrices whose values are well apart: second derivatives have poles where two meet."""
    *batch, m, n = shape
    k = min(m, n)
    U = torch.linalg.qr(torch.randn(*batch, m, k, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(*batch, n, k, dtype=torch.float64))[0]
    return (U * torch.linspace(3, 1, k, dtype=torch.float64) @ V.mT).to(dtype)


def smooth_stats(A: Tensor) -> Tensor:
    stats = sf.spectral_stats(A)
    return torch.stack([getattr(stats, name) for name in SMOOTH_FIELDS], -1)


def smooth_stats_of_values(S: Tensor) -> Tensor:
    stats = sf.stats_from_svdvals(S)
    return torch.stack([getattr(stats, name) for name in SMOOTH_FIELDS], -1)


OF_MATRICES: dict[str, Function] = {
    "svdvals": sf.svdvals,
    "svdvals_ex": lambda A: sf.svdvals_ex(A).S,
    "spectral_stats": smooth_stats,
    "spectral_stats and values": lambda A: sf.spectral_stats(A, return_svdvals=True).svdvals ** 2,
}
OF_VALUES: dict[str, Function] = {
    "stats_from_svdvals": smooth_stats_of_values,
    "hill_alpha": sf.hill_alpha,
    "hill_alpha k": lambda x: sf.hill_alpha(x, k=3),
    "ranksize_slope": sf.ranksize_slope,
}
# Values out of order: the operators sort, so the derivative has to come back through the order.
SHUFFLED = torch.tensor([[2.0, 5.0, 1.0, 3.5, 0.5], [0.1, 0.7, 4.0, 1.5, 9.0]], dtype=torch.float64)


def inputs_of(name: str) -> Tensor:
    return distinct(2, 5, 4) if name in OF_MATRICES else SHUFFLED.clone()


ALL = {**OF_MATRICES, **OF_VALUES}


@pytest.mark.parametrize("name", ALL)
def test_gradcheck_both_modes_batched_and_twice(name: str) -> None:
    x = inputs_of(name).requires_grad_()
    assert gradcheck(ALL[name], x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(ALL[name], x, check_fwd_over_rev=True)


@pytest.mark.parametrize("shape", [(3, 6), (6, 3), (1, 4), (4, 1), (2, 3, 3)], ids=str)
def test_gradcheck_shapes(shape: tuple[int, ...]) -> None:
    assert gradcheck(sf.svdvals, distinct(*shape).requires_grad_(), check_forward_ad=True)


@pytest.mark.parametrize("name", OF_MATRICES)
def test_transforms_agree_with_torch(name: str) -> None:
    """Each transform of ours against the same transform of the function written with torch.linalg.svdvals."""

    def with_torch(A: Tensor) -> Tensor:
        values = torch.linalg.svdvals(A)
        if name.endswith("values"):
            return values**2
        return values if name.startswith("svdvals") else smooth_stats_of_values(values)

    f, A = OF_MATRICES[name], distinct(3, 5, 4)
    transforms: dict[str, Callable[[Function], Tensor]] = {
        "vmap": lambda f: vmap(f)(A),
        "vmap in_dims": lambda f: vmap(f, in_dims=2)(A),
        "vmap twice": lambda f: vmap(vmap(f))(A.expand(2, 3, 5, 4)),
        "grad": lambda f: grad(lambda a: f(a).sin().sum())(A[0]),
        "vmap(grad)": lambda f: vmap(grad(lambda a: f(a).sin().sum()))(A),
        "jacrev": lambda f: jacrev(f)(A[0]),
        "jacfwd": lambda f: jacfwd(f)(A[0]),
        "vmap(jacrev)": lambda f: vmap(jacrev(f))(A),
        "jvp": lambda f: jvp(f, (A,), (A.sin(),))[1],
        "vmap(jvp)": lambda f: vmap(lambda a: jvp(f, (a,), (a.sin(),))[1])(A),
        "vjp": lambda f: vjp(f, A)[1](f(A).cos())[0],
        "hessian": lambda f: hessian(lambda a: f(a).sin().sum())(A[0]),
        "grad(grad)": lambda f: grad(lambda a: grad(lambda b: f(b).sin().sum())(a).cos().sum())(A[0]),
    }
    for transform, apply in transforms.items():
        result, expected = apply(f), apply(with_torch)
        # gradients of one computation in two orders, second derivatives divide by gaps of 2/3
        torch.testing.assert_close(
            result, expected, rtol=1e-9, atol=1e-9, msg=lambda m, t=transform: f"{t}: {m}"
        )


def test_forward_mode_is_not_zero() -> None:
    A, T = distinct(5, 4), torch.randn(5, 4, dtype=torch.float64)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(sf.svdvals(forward_ad.make_dual(A, T))).tangent
    step = 1e-6
    difference = (sf.svdvals(A + step * T) - sf.svdvals(A - step * T)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradient_has_the_dtype_of_the_matrix(dtype: torch.dtype) -> None:
    A = distinct(6, 4).to(dtype).requires_grad_()
    stats = sf.spectral_stats(A, return_svdvals=True)
    (gradient,) = torch.autograd.grad(stats.svdvals.sum() + stats.stable_rank, A)
    exact = A.detach().double().requires_grad_()
    stats = sf.spectral_stats(exact, return_svdvals=True)
    (expected,) = torch.autograd.grad(stats.svdvals.sum() + stats.stable_rank, exact)
    assert gradient.dtype == dtype
    # one rounding to dtype; U and V err by eps32 over the gaps
    torch.testing.assert_close(gradient.double(), expected, rtol=torch.finfo(dtype).eps, atol=3e-6)


ORDINARY: dict[str, Tensor] = {
    "a zero value": torch.diag(torch.tensor([1.0, 0.5, 0.0])),
    "equal values": torch.eye(4),
    "one value": torch.tensor([[3.0], [4.0]]),
    "two values": torch.tensor([[1.0, 2.0], [0.5, -1.0]]),
    "tiny": torch.diag(torch.tensor([3e-30, 2e-30, 1e-30])),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_infinite_derivatives_of_other_fields_do_not_spoil_the_gradient(name: str) -> None:
    """alpha_hill, condition_number and others have none there; stable_rank and nuclear_norm do."""
    A = ORDINARY[name].double().requires_grad_()
    stats = sf.spectral_stats(A)
    for field in ("stable_rank", "nuclear_norm", "participation_ratio", "log_norm"):
        (gradient,) = torch.autograd.grad(getattr(stats, field).sum(), A, retain_graph=True)
        S = torch.linalg.svdvals(A)
        lam = S**2
        expected = {
            "stable_rank": lam.sum() / lam[0],
            "nuclear_norm": S.sum(),
            "participation_ratio": (lam / lam[0]).sum() ** 2 / (lam / lam[0]).square().sum(),
            "log_norm": lam.sum().log10(),
        }[field]
        (expected_gradient,) = torch.autograd.grad(expected, A)
        scale = expected_gradient.abs().max()
        assert (gradient - expected_gradient).abs().max() <= 1e-12 * scale + 1e-300, field


def test_gradient_at_extreme_scales() -> None:
    S = torch.tensor([3.0, 2.0, 1.5, 0.5], dtype=torch.float64)
    for scale in (1e-160, 1e160):
        x = (S * scale).requires_grad_()
        (gradient,) = torch.autograd.grad(sf.stats_from_svdvals(x).participation_ratio, x)
        y = S.clone().requires_grad_()
        (expected,) = torch.autograd.grad(sf.stats_from_svdvals(y).participation_ratio, y)
        torch.testing.assert_close(gradient * scale, expected, rtol=1e-13, atol=0)


def test_forward_mode_twice_raises() -> None:
    """torch runs a Function's jvp with forward mode off: the outer level would see a constant."""
    for function in (lambda a: sf.svdvals(a).sum(), lambda a: sf.spectral_stats(a).stable_rank):
        with pytest.raises(RuntimeError, match="forward mode inside forward mode"):
            jacfwd(jacfwd(function))(distinct(4, 3))


@pytest.mark.parametrize("function", [sf.svdvals_ex, sf.spectral_stats])
def test_a_nonfinite_matrix_does_not_stop_the_gradient_of_others(function: Callable[..., Any]) -> None:
    A = distinct(3, 5, 4)
    A[1, 0, 0] = torch.nan
    x = A.clone().requires_grad_()
    leaves = vars(function(x))["stable_rank"] if function is sf.spectral_stats else function(x).S
    leaves[0::2].sum().backward()
    assert x.grad is not None
    assert x.grad[0::2].isfinite().all()
    y = A[0::2].clone().requires_grad_()
    leaves = vars(function(y))["stable_rank"] if function is sf.spectral_stats else function(y).S
    leaves.sum().backward()
    torch.testing.assert_close(x.grad[0::2], y.grad, rtol=1e-12, atol=1e-12)


def test_complex_and_meta() -> None:
    A = torch.randn(4, 3, dtype=torch.complex128, requires_grad=True)
    assert gradcheck(sf.svdvals, A, check_forward_ad=True)
    meta = torch.empty(3, 4, device="meta", requires_grad=True)
    sf.svdvals(meta).sum().backward()
    assert meta.grad is not None
    assert meta.grad.shape == (3, 4)


def test_autocast_leaves_derivatives_alone() -> None:
    """The products with U and V would be cut to bfloat16."""
    A, T = torch.randn(6, 4), torch.randn(6, 4)
    values, tangent = jvp(sf.svdvals, (A,), (T,))
    gradient = grad(lambda a: sf.svdvals(a).sum())(A)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sf.svdvals(A), values)
        assert torch.equal(jvp(sf.svdvals, (A,), (T,))[1], tangent)
        assert torch.equal(grad(lambda a: sf.svdvals(a).sum())(A), gradient)


def test_no_graph_is_kept_where_none_is_asked_for() -> None:
    A = distinct(4, 3).requires_grad_()
    with torch.no_grad():
        assert not sf.svdvals(A).requires_grad
    assert not sf.svdvals(A.detach()).requires_grad
    S, info = sf.svdvals_ex(A)
    assert S.requires_grad
    assert not info.requires_grad


class TestNotDifferentiable:
    """alpha and its company jump with xmin: an error, or NaN where torch leaves no place for one."""

    @pytest.mark.parametrize("name", FITTED_FIELDS)
    def test_reverse_mode_raises(self, name: str) -> None:
        A = distinct(30, 25).requires_grad_()
        field = getattr(sf.spectral_stats(A), name)
        match = "not differentiable" if field.is_floating_point() else "does not require grad"
        with pytest.raises(RuntimeError, match=match):
            field.double().sum().backward()
        with pytest.raises(RuntimeError, match="not differentiable"):
            grad(lambda s: sf.stats_from_svdvals(s).alpha)(sf.svdvals(A.detach()))

    def test_forward_mode_is_nan(self) -> None:
        A = distinct(30, 25)
        tangent = jvp(lambda a: sf.spectral_stats(a).alpha, (A,), (A,))[1]
        assert tangent.isnan()
        tangent = jvp(lambda s: sf.stats_from_svdvals(s).alpha, (sf.svdvals(A),), (sf.svdvals(A),))[1]
        assert tangent.isnan()

    def test_fit_powerlaw_raises_in_both_modes(self) -> None:
        evals = torch.linspace(1, 9, 30, dtype=torch.float64)
        with pytest.raises(RuntimeError, match="fit_powerlaw is not differentiable"):
            sf.fit_powerlaw(evals.clone().requires_grad_()).alpha.backward()
        for derivative in (grad, jacfwd):
            with pytest.raises(RuntimeError, match="fit_powerlaw is not differentiable"):
                derivative(lambda x: sf.fit_powerlaw(x).alpha)(evals)
        threshold = torch.tensor(2.0, requires_grad=True)
        with pytest.raises(RuntimeError, match="fit_powerlaw is not differentiable"):
            sf.fit_powerlaw(evals, xmin=threshold).alpha.backward()

    def test_smooth_fields_beside_it_still_have_gradients(self) -> None:
        A = distinct(30, 25).requires_grad_()
        stats = sf.spectral_stats(A)
        loss = stats.stable_rank + stats.alpha.detach()
        (gradient,) = torch.autograd.grad(loss, A)
        assert gradient.abs().sum() > 0


def test_vmap_of_statistics_equals_the_batch() -> None:
    A = torch.randn(3, 2, 20, 12, dtype=torch.float64)
    for a, b in zip(
        vars(vmap(sf.spectral_stats)(A)).values(), vars(sf.spectral_stats(A)).values(), strict=True
    ):
        assert a is b is None or torch.equal(a, b)
    evals = sf.svdvals(A) ** 2
    threshold = evals.median(-1).values
    batched = vmap(lambda x, t: sf.fit_powerlaw(x, xmin=t))(evals, threshold)
    shared = vmap(lambda x, t: sf.fit_powerlaw(x, xmin=t), in_dims=(0, None))(evals, threshold[0])
    for i, field in enumerate(sf.fit_powerlaw(evals, xmin=threshold)):
        assert torch.equal(batched[i], field)
    for i, field in enumerate(sf.fit_powerlaw(evals, xmin=threshold[0])):
        assert torch.equal(shared[i], field)
    # one threshold a vmapped element, not one a row of it
    square = evals[:2].mT.contiguous()[:, :2]
    per_element = vmap(lambda x, t: sf.fit_powerlaw(x, xmin=t).n_tail)(square, threshold[:2, 0])
    for i in range(2):
        assert torch.equal(per_element[i], sf.fit_powerlaw(square[i], xmin=threshold[i, 0]).n_tail)


def test_xmin_of_the_statistics_selects_their_tail() -> None:
    A = torch.randn(200, 20, 20, dtype=torch.float64)
    stats = sf.spectral_stats(A, return_svdvals=True)
    lam = stats.svdvals**2
    assert torch.equal((lam >= stats.xmin[:, None]).sum(-1), stats.n_tail)
    again = sf.fit_powerlaw(lam, xmin=stats.xmin)
    torch.testing.assert_close(again.alpha, stats.alpha, rtol=1e-12, atol=0)
