"""Looks at a model on a real GPU: side streams, trackers, randomized estimates, derivatives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import spectral_fast as sf
from spectral_fast.monitor import Look, SpectralMonitor
from tests.test_monitor import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:.*deterministic"),
]


@pytest.fixture(params=["ieee", "tf32"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of the training's own products."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = request.param
    yield request.param
    matmul.fp32_precision = before


def trained(steps: int, monitored: bool) -> tuple[list[Tensor], list[Look], list[dict[str, Tensor]]]:
    """The state after some steps, the looks, and the weights as they were before and after each step."""
    torch.manual_seed(3)
    model = Model(d=256, layers=2).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    looks: list[Look] = []
    weights = [{name: p.detach().cpu() for name, p in model.named_parameters()}]
    monitor = SpectralMonitor(model, every=4, budget=None, sinks=[looks.append]) if monitored else None
    if monitor is not None:
        monitor.look()  # compiles
    for _ in range(steps):
        torch.cuda._sleep(100_000_000)  # clocks: while a look is in work, steps are not looked at
        tokens = torch.randint(40, (64, 32), device="cuda")
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights.append({name: p.detach().cpu() for name, p in model.named_parameters()})
        if monitor is not None:
            monitor.step()
    if monitor is not None:
        monitor.close()
    leaves = [*model.parameters(), *torch.utils._pytree.tree_leaves(optimizer.state_dict()["state"])]
    return [leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor)], looks, weights


def test_looks_beside_the_training(precision: str) -> None:
    """No bit of the training differs, and a look is at the weights of its step while the next one goes on."""
    plain, _, _ = trained(12, monitored=False)
    watched, looks, weights = trained(12, monitored=True)
    assert all(map(torch.equal, plain, watched))
    assert torch.backends.cuda.matmul.fp32_precision == precision
    assert {look.kind for look in looks} == {"exact", "tracked"}
    for look in looks:
        assert len(look.matrices) == 8
        for matrix in look.matrices:
            exact = sf.spectral_stats(weights[look.step][matrix.name], return_svdvals=True)
            assert exact.svdvals is not None
            if matrix.kind == "exact":
                off = (torch.from_numpy(matrix.svdvals) - exact.svdvals).abs().max() / exact.svdvals[0]
                assert off <= 8 * torch.finfo(torch.float32).eps  # 4 eps of ours on either side
            else:
                rank, error = float(exact.stable_rank), matrix.errors["stable_rank"]
                assert matrix.statistics["stable_rank"] == pytest.approx(rank, rel=2e-3, abs=4 * error)


def test_a_step_does_not_wait_for_the_look(precision: str) -> None:
    """Behind kernels of half a second neither copying nor tracking keeps the host; many steps, to the bit."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(4))).cuda()
    looks: list[Look] = []
    monitor = SpectralMonitor(model, every=100, track_every=1, budget=None, sinks=[looks.append])
    x = torch.randn(8192, 1024, device="cuda")
    for _ in range(3):  # compiles, and anchors
        monitor.look()
        monitor.step()
    steps = []
    for _ in range(6):
        busy = torch.cuda.Event()
        torch.cuda._sleep(1_000_000_000)  # clocks: half a second
        busy.record()
        began = time.perf_counter()
        monitor.step()
        steps.append(time.perf_counter() - began)
        assert not busy.query()
        with torch.no_grad():
            for layer in model:
                layer.weight.add_(1e-3 * torch.randn_like(layer.weight))
                layer(x)
        torch.cuda.synchronize()
    assert max(steps) < 0.2
    monitor.close()
    assert "tracked" in {look.kind for look in looks}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("spectral-monitor")]


def test_looks_under_load_change_no_bit(precision: str) -> None:
    """Large products of the training's, with tracked looks at every step whose thread multiplies, too."""

    def weights(monitored: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(*(nn.Linear(768, 768, bias=False) for _ in range(8))).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        monitor = SpectralMonitor(model, every=100, budget=None) if monitored else None
        x = torch.randn(8192, 768, device="cuda")
        if monitor is not None:
            monitor.look()  # compiles
        for _ in range(200):
            loss = (model(x) - x).square().mean()
            loss.backward()
            optimizer.step()
            loss.item()  # as loops do that print it: the host is not steps ahead of the device
            optimizer.zero_grad()
            if monitor is not None:
                monitor.step()
        if monitor is not None:
            monitor.close()
            assert monitor.report().looks["tracked"] > 1
        return [p.detach().clone() for p in model.parameters()]

    assert all(map(torch.equal, weights(False), weights(True)))


def test_a_tracker_follows() -> None:
    g = torch.Generator().manual_seed(0)
    A = torch.randn(3, 700, 500, generator=g) * torch.logspace(0, -1.5, 500)
    tracker = sf.SpectralTracker(generator=torch.Generator().manual_seed(1))
    tracker.exact(A.cuda())
    for _ in range(3):
        A = A + 0.01 * torch.randn(A.shape, generator=g) * A.square().mean().sqrt()
        found, exact = tracker.track(A.cuda()), sf.spectral_stats(A, return_svdvals=True)
        assert exact.svdvals is not None
        torch.testing.assert_close(found.spectral_norm.cpu(), exact.spectral_norm, rtol=1e-3, atol=0)
        torch.testing.assert_close(found.stable_rank.cpu(), exact.stable_rank, rtol=2e-3, atol=0)
        torch.testing.assert_close(found.leading.cpu(), exact.svdvals[:, :16].double(), rtol=1e-2, atol=0)


def test_estimates_from_nothing() -> None:
    A = torch.randn(2, 900, 800, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1, 800)
    found = sf.tail_stats(A.cuda(), generator=torch.Generator().manual_seed(1))
    exact = sf.spectral_stats(A)
    torch.testing.assert_close(found.stable_rank.cpu(), exact.stable_rank, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.alpha_hill.cpu(), exact.alpha_hill, rtol=0.1, atol=0)


def test_derivatives() -> None:
    A = torch.randn(2, 90, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grads = []
    for device in ("cpu", "cuda"):
        X = A.to(device).detach().requires_grad_()
        (sf.svdvals(X).pow(3).sum() + sf.spectral_stats(X).effective_rank.sum()).backward()
        assert X.grad is not None
        grads.append(X.grad.cpu())
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_goodness_of_fit_and_the_lognormal() -> None:
    evals = torch.rand(3, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64).pow(-1.5)
    ours, theirs = (
        sf.goodness_of_fit(evals.to(d), n_samples=500, generator=torch.Generator(d).manual_seed(1))
        for d in ("cpu", "cuda")
    )
    # Other random numbers: six standard errors of a difference.
    assert (ours.p_value - theirs.p_value.cpu()).abs().max() <= 6 * 2**0.5 * 0.5 / 500**0.5
    leaves = (torch.utils._pytree.tree_leaves(sf.compare_lognormal(evals.to(d))) for d in ("cpu", "cuda"))
    for on_cpu, on_gpu in zip(*leaves, strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-6, atol=1e-9)
