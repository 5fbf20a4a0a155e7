"""The commands of tests/reliability: each on little, and each against a fault it has to find."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import spectral_fast as sf
from spectral_fast import _cpu
from tests.oracles.svd_oracle import singular_values
from tests.reliability import fuzz, kills, lapack, soak, stress, stress_kernels
from tests.reliability.__main__ import main
from tests.reliability.extended import singular_values_by_bisection
from tests.reliability.matrices import LAYOUTS, MIDDLE, build, plan


def test_a_tenth_of_the_matrices_is_large_and_every_layout_has_the_same_entries() -> None:
    cases = plan(seed=3, chunk=0, matrices=500)
    assert sum(case.batch for case in cases) == 500
    assert sum(case.batch for case in cases if min(case.rows, case.cols) > MIDDLE) == 50
    assert {case.layout for case in cases} == set(LAYOUTS)
    small = [
        case for case in cases if case.batch > 1 and case.rows * case.cols < 500 and "float" in case.dtype
    ]
    for case in small[:20]:
        A = build(case)
        assert A.shape == (case.batch, case.rows, case.cols)
        assert A.isfinite().all()
        assert torch.equal(A, build(case))
        if case.layout != "expanded":
            rows = build(type(case)(**{**vars(case), "layout": "rows"}))
            assert torch.equal(A, rows)


def test_fuzzed_matrices_keep_the_bound() -> None:
    found = fuzz.check_chunk(seed=5, chunk=0, matrices=40)
    assert sum(group["matrices"] for group in found["groups"].values()) == found["matrices"] == 40
    assert found["failures"] == []


def test_the_fuzzer_sees_a_value_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower half of a spectrum set to zero; a sum that misses its last digits."""
    exact = sf.spectral_stats

    def halved(A: torch.Tensor, **options: bool) -> sf.SpectralStats:
        stats = exact(A, **options)
        assert stats.svdvals is not None
        stats.svdvals[..., stats.svdvals.shape[-1] // 2 :] = 0
        return stats

    case = next(c for c in plan(5, 0, 500) if c.spectra[0] == "gaussian" and min(c.rows, c.cols) > 4)
    with monkeypatch.context() as patch:
        patch.setattr(sf, "spectral_stats", halved)
        patch.setattr(sf, "svdvals", lambda A: halved(A, return_svdvals=True).svdvals)
        assert "times the bound" in "".join(problem for *_, problem in fuzz.check(case))
    values = torch.linspace(2, 1, 30, dtype=torch.float64)
    stats = {name: getattr(sf.stats_from_svdvals(values), name).item() for name in sf.stats.scalar_fields()}
    assert fuzz._statistics(values, stats) == ""
    stats["nuclear_norm"] *= 1 + 1e-9
    assert "nuclear_norm" in fuzz._statistics(values, stats)


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (33, 40)], ids=str)
def test_the_second_extended_oracle_agrees_with_the_first(shape: tuple[int, int]) -> None:
    for scale in (1.0, 1e300, 1e-310):
        A = (
            torch.randn(shape, dtype=torch.float64)
            * torch.logspace(0, -12, shape[1], dtype=torch.float64)
            * scale
        )
        expected = singular_values(A)
        # Both err by a few roundings for each of some hundred operations on an entry.
        allowed = 500 * np.finfo(np.longdouble).eps * expected[0]
        assert (np.abs(singular_values_by_bisection(A) - expected) <= allowed).all()


def test_the_second_extended_oracle_on_rank_one() -> None:
    """What is left of all ones falls by the rounding at each step, until its squares underflow."""
    values = singular_values_by_bisection(torch.ones(180, 170, dtype=torch.float64))
    allowed = 500 * np.finfo(np.longdouble).eps * np.sqrt(np.longdouble(180 * 170))
    assert abs(values[0] - np.sqrt(np.longdouble(180 * 170))) <= allowed
    assert (values[1:] <= allowed).all()


def test_lapack_types() -> None:
    results = list(lapack.check([(1, 1), (1, 3), (2, 2), (10, 8), (12, 30), (33, 33)]))
    assert len({result.kind for result in results}) == 19
    assert [result for result in results if result.problem] == []
    ours = max(result.ratio for result in results if result.driver is None)
    assert 0 < ours < lapack.LAPACK_THRESHOLD


def test_a_leak_shows_as_a_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytearray] = []
    calls = [(1.0, lambda: kept.append(bytearray(4096))), (1.0, lambda: sf.svdvals(torch.eye(3)))]
    with monkeypatch.context() as patch:
        patch.setattr(soak, "calls", lambda seed: calls)
        found = soak.soak(4000)
    assert not found.flat
    assert found.allocated_slope[0] == pytest.approx(2048, rel=0.2)  # every other call keeps 4 kB
    assert len(kept) > 1500


def test_every_call_of_the_soak_can_be_made() -> None:
    for weight, call in soak.calls(seed=2):
        assert weight > 0
        for _ in range(3):
            call()


def test_callers_at_once_get_the_bits_of_one_alone() -> None:
    before = torch.get_num_threads()
    try:
        made, problems = stress.stress_here(threads=4, seconds=0.5, seed=1)
    finally:
        torch.set_num_threads(before)
    assert problems == []
    assert made >= 4 * 3


def test_kernels_on_batches_that_shrink_and_grow() -> None:
    made, wrong = stress_kernels.stress(_cpu, seconds=0.5, seed=1)
    assert wrong == []
    assert made >= 3 * 4


@pytest.mark.slow
def test_an_interrupted_fuzz_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, chunks = tmp_path / "fuzz.json", tmp_path / "fuzz.chunks"
    chunks.mkdir()
    done = {
        "matrices": 500,
        "groups": {"earlier": {"matrices": 500, "largest": 0.5, "beyond": 0}},
        "failures": [],
    }
    (chunks / "1-00000.json").write_text(json.dumps(done))
    main(["fuzz", "--matrices", "1000", "--jobs", "1", "--json", str(json_file)])
    assert "chunk 1: 2 of 2 done" in (printed := capsys.readouterr().out)
    assert "| earlier | 500 | 0.50 | 0 |" in printed
    assert json.loads(json_file.read_text())["matrices"] == 1000


@pytest.mark.slow
def test_nothing_is_lost_by_kill_9(tmp_path: Path) -> None:
    found = kills.kill_often(tmp_path / "run", 4, seed=3, longest=0.2)
    assert found.problems == ()
    assert found.acknowledged > 8
