"""The report of a GPU, with a device whose clock is made up: everything but the timing itself."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C._autograd import DeviceType

import spectral_fast
from benchmarks import __main__ as command
from benchmarks import command_line
from benchmarks.baselines import Baseline
from benchmarks.cases import Case
from benchmarks.gpu import commands, device, plots
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu.cases import CaseRow, measure_case, measure_cases
from benchmarks.gpu.chips import CHIPS
from benchmarks.gpu.device import Gpu, KernelTime, NoGpuError, cuda_gpu, kernel_times, nvidia_smi
from benchmarks.gpu.first_use import measure_first_use
from benchmarks.gpu.look import LOOK_MODEL, kernel_stages, measure_look, measure_stages
from benchmarks.gpu.markdown import markdown
from benchmarks.gpu.peers import PEERS
from benchmarks.gpu.plots import draw_all
from benchmarks.gpu.report import run_marked_tests, verdict
from benchmarks.machine import versions
from benchmarks.suites import build_suite
from spectral_fast.cuda import sources
from spectral_fast.heuristics import Plan

SQUARE = Case(40, 40, 6, ("batch",), ("gpt2-124m",), ("q", "k", "v", "o"), 4)
WIDE = Case(30, 90, 6, ("batch",), ("gpt2-124m",), ("mlp_in",))
LARGE = Case(96, 96, 4, ("batch",), ("pythia-1b",), ("q", "k", "v", "o"), 4)
PASSED = {"status": "ok", "tests": 5, "passed": 4, "failures": 0, "errors": 0, "skipped": 1, "seconds": 2.0}
FIRST_CALL = {"shape": [2, 9, 9], "dtype": "float32", "first": 9.0, "second": 0.001}
FIRST_USE = {
    "cold": {"import": 1.5, "device": 0.5, "calls": [FIRST_CALL]},
    "warm": {"import": 1.5, "device": 0.5, "calls": [{**FIRST_CALL, "first": 0.3}]},
}
VERSIONS = functools.cache(versions)  # looks for CuPy's distribution for a second
KERNELS = [
    KernelTime("distance_kernel", 1, 3e-3),
    KernelTime("void at::native::copy<float>(int)", 4, 1e-3),
]


class Machine:
    """A device of which every matrix takes a known time with every method, and its time of day."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = {"ours": 1e-3, "torch": 4e-3, "torch-loop": 5e-3, "gram": 2e-3}
        self.now, self.ran, self.memory = 0.0, ("", 0), 7 * 2**20
        self.patch = monkeypatch
        right = spectral_fast.svdvals
        for name in PEERS:
            devices = ("cpu",) if name in self.seconds else ("cuda",)
            monkeypatch.setitem(PEERS, name, Baseline(devices, self.method(name, right)))
        monkeypatch.setattr(spectral_fast, "svdvals", self.method("ours", right))
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        self.gpu = Gpu(
            *(torch.device("cpu"), "NVIDIA H100 of cardboard"),
            *(self.clock, self.profile, self.peak, self.state, CHIPS["h100"]),
        )

    def method(self, name: str, values: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(A: Tensor) -> Tensor:
            self.ran = (name, len(A))
            return values(A)

        return call

    def clock(self, call: Callable[[], Any], count: int) -> float:
        for _ in range(count):
            call()
        name, matrices = self.ran
        each = self.seconds.get(name, 1e-3) * matrices
        self.now += count * each
        return each

    def profile(self, call: Callable[[], Any]) -> list[KernelTime]:
        call()
        return KERNELS

    def peak(self, call: Callable[[], Any]) -> int:
        call()
        return self.memory

    def state(self) -> dict[str, str]:
        return {"driver_version": "580.1", "clocks.sm": "1755 MHz"}

    def measure(self, case: Case, seconds: float, dtype: torch.dtype = torch.float32) -> CaseRow:
        return measure_case(case, dtype, self.gpu, list(PEERS), seconds)[0]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def written(folder: Path) -> tuple[str, dict[str, Any]]:
    text = (folder / "report.md").read_text(encoding="utf-8")
    return text, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def methods(row: CaseRow) -> dict[str, Any]:
    return {method.name: method for method in row.methods}


# A stack


def test_times_are_of_one_matrix_and_ratios_of_pairs(machine: Machine) -> None:
    row = machine.measure(SQUARE, 10.0)
    assert row.status == "ok"
    assert row.gate is not None
    assert row.gate.holds
    assert row.gate.compared == (0, 5)
    assert list(methods(row)) == ["ours", *PEERS]
    for name, ratio in (("ours", None), ("torch", 4), ("torch-loop", 5), ("gram", 2)):
        method = methods(row)[name]
        assert (method.status, method.matrices, method.peak_bytes) == ("ok", 6, 7 * 2**20)
        assert method.spread.median == pytest.approx(machine.seconds[name])
        assert len(method.seconds) == 7
        assert (method.ratio and method.ratio.median) == (ratio and pytest.approx(ratio))
        assert method.error == pytest.approx(row.gate.error)  # they all are ours here
    assert methods(row)["cupy"].status == "not available: runs on cuda only"


@pytest.mark.parametrize(
    ("each", "timed"),
    # A seventh of 12.6 s for nine calls: 0.2 s a call.
    [(0.033, 6), (0.05, 4), (0.15, 1)],
)
def test_a_slow_method_is_timed_on_the_first_matrices(machine: Machine, each: float, timed: int) -> None:
    machine.seconds["torch"] = each
    method = methods(machine.measure(SQUARE, 12.6001))["torch"]
    assert (method.status, method.matrices) == ("ok", timed)
    assert method.spread.median == pytest.approx(each)
    assert method.ratio.median == pytest.approx(each / 1e-3)
    assert method.error < 5  # of the first matrix, which the gate has


def test_a_method_too_slow_for_one_matrix_says_so_and_the_others_go_on(machine: Machine) -> None:
    machine.seconds["torch"] = 0.21
    found = methods(machine.measure(SQUARE, 12.6))
    assert found["torch"].status == "not measured: one matrix took 0.21 s, 9 calls are more than its 1.8 s"
    assert found["torch"].spread is None
    assert found["gram"].spread is not None


def test_a_broken_method_is_its_row(machine: Machine) -> None:
    def broken(A: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def not_a_number(A: Tensor) -> Tensor:
        return machine.method("gram", spectral_fast.svdvals)(A) * torch.nan

    machine.patch.setitem(PEERS, "torch", Baseline(("cpu",), broken))
    machine.patch.setitem(PEERS, "gram", Baseline(("cpu",), not_a_number))
    found = methods(machine.measure(SQUARE, 10.0))
    assert found["torch"].status == "out of memory"
    assert found["gram"].status == "failed: values are not finite"
    assert found["gram"].spread is None
    assert found["torch-loop"].status == "ok"


def test_wrong_values_get_no_time(machine: Machine) -> None:
    right = spectral_fast.svdvals

    def wrong(A: Tensor) -> Tensor:
        values = right(A)
        values[-1, -1] += 1e-5 * values[-1, 0]  # the norm hardly changes
        return values

    machine.patch.setattr(spectral_fast, "svdvals", wrong)
    machine.patch.setattr(machine, "clock", None)  # nothing is timed before the gate
    row = machine.measure(SQUARE, 10.0)
    assert row.status.startswith("accuracy gate failed: matrix 5 of 6 errs by ")
    assert row.failed
    assert row.methods == []


def test_ours_failing_is_the_row(machine: Machine) -> None:
    def broken(A: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available")

    machine.patch.setattr(spectral_fast, "svdvals", broken)
    row = machine.measure(SQUARE, 10.0)
    assert row.status == "failed: RuntimeError: no kernel image is available"
    assert row.failed


def test_where_ours_is_torch_there_is_no_ratio(machine: Machine) -> None:
    plan = Plan("reference", "torch", ("torch.linalg.svdvals",), "no kernel")
    machine.patch.setattr(spectral_fast, "explain", lambda *_: plan)
    row = machine.measure(SQUARE, 10.0)
    assert row.backend == "reference"
    assert all(method.ratio is None for method in row.methods)
    assert methods(row)["torch"].spread is not None


def test_float64_above_64_is_gated_against_lapack(machine: Machine) -> None:
    row = machine.measure(LARGE, 10.0, torch.float64)
    assert row.gate is not None
    assert row.gate.weaker
    assert row.gate.holds
    assert all(method.error is None for method in row.methods)


# The time for all stacks


def test_the_largest_stacks_are_dropped_when_time_is_over(machine: Machine) -> None:
    rows = list(
        measure_cases([LARGE, SQUARE, WIDE], torch.float32, machine.gpu, list(PEERS), 1.1, lambda text: None)
    )
    assert [row.case for row in rows] == sorted([LARGE, SQUARE, WIDE], key=lambda case: case.flops)
    assert rows[0].status == "ok"
    assert [row.status for row in rows[1:]] == ["not measured: not in the budget of 1 s"] * 2
    assert not any(row.failed for row in rows)


def test_time_that_small_stacks_leave_goes_to_larger_ones(machine: Machine) -> None:
    shares: list[float] = []
    real = gpu_report.measure_cases.__globals__["measure_case"]

    def spy(case: Case, dtype: torch.dtype, gpu: Gpu, peers: Any, seconds: float) -> Any:
        shares.append(seconds)
        return real(case, dtype, gpu, peers, seconds)

    machine.patch.setitem(gpu_report.measure_cases.__globals__, "measure_case", spy)
    list(measure_cases([LARGE, SQUARE, WIDE], torch.float32, machine.gpu, list(PEERS), 90, lambda text: None))
    assert shares[0] == pytest.approx(30)
    assert 30 < shares[1] < shares[2] < 90


def test_a_gate_that_would_take_too_long_is_not_started(machine: Machine) -> None:
    """Its time is expected from that of the stack before: 30 s, and 14 times the operations come next."""
    fast = spectral_fast.svdvals
    waits = iter([30.0])

    def slow_at_first(A: Tensor) -> Tensor:
        machine.now += next(waits, 0.0)
        return fast(A)

    machine.patch.setattr(spectral_fast, "svdvals", slow_at_first)
    rows = list(measure_cases([SQUARE, LARGE], torch.float32, machine.gpu, ["torch"], 100, lambda text: None))
    assert [row.status for row in rows] == ["ok", "not measured: not in the budget of 100 s"]


def test_interruption_keeps_what_is_there(machine: Machine) -> None:
    def interrupted(A: Tensor) -> Tensor:
        raise KeyboardInterrupt

    machine.patch.setitem(PEERS, "torch", Baseline(("cpu",), interrupted))
    rows = list(measure_cases([SQUARE, LARGE], torch.float32, machine.gpu, ["torch"], 90, lambda text: None))
    assert [row.status for row in rows] == ["not measured: interrupted"] * 2


# The look, and kernel by kernel


def test_a_look_is_taken_a_call_a_role_and_a_call_a_shape(machine: Machine) -> None:
    calls: list[tuple[int, ...]] = []
    real = spectral_fast.spectral_stats

    def spy(A: Tensor, **options: Any) -> Any:
        calls.append(tuple(A.shape))
        machine.ran = ("ours", len(A))
        return real(A, **options)

    machine.patch.setattr(spectral_fast, "spectral_stats", spy)
    look = measure_look(machine.gpu, [SQUARE, WIDE], 60.0)
    assert look.status == "ok"
    assert look.matrices == 4 * 6 + 6
    assert all(gate.holds for gate in look.gates)
    assert look.alpha_error is not None
    assert look.alpha_error < 1e-3
    assert [way.calls for way in look.ways] == [5, 2, 5]
    assert all(len(way.seconds) == 7 and way.peak_bytes == machine.memory for way in look.ways)
    assert [way.name for way in look.ways] == [
        *("ours, a call a role", "ours, a call a shape"),
        "torch.linalg.svdvals, values only",
    ]
    assert {(24, 40, 40), (6, 40, 40), (6, 30, 90)} <= set(calls)
    assert look.predicted is not None
    assert 0 < look.predicted < 1


def test_a_look_with_wrong_values_gets_no_time(machine: Machine) -> None:
    real = spectral_fast.spectral_stats

    def wrong(A: Tensor, **options: Any) -> Any:
        found = real(A, **options)
        if found.svdvals is not None:
            found.svdvals[0, -1] += found.svdvals[0, 0] * 1e-5
        return found

    machine.patch.setattr(spectral_fast, "spectral_stats", wrong)
    look = measure_look(machine.gpu, [SQUARE], 60.0)
    assert look.failed
    assert look.status.startswith("accuracy gate failed")
    assert look.ways == []


def test_torch_is_left_out_of_the_look_where_it_takes_too_long(machine: Machine) -> None:
    machine.seconds["torch"] = 1.0
    look = measure_look(machine.gpu, [SQUARE, WIDE], 60.0)
    assert look.status == "ok"
    assert look.ways[-1].spread is None
    assert look.ways[-1].status.startswith("not measured: ")
    assert look.ways[0].spread is not None


def test_kernels_of_a_call_beside_their_prediction(machine: Machine) -> None:
    row = measure_stages(machine.gpu, LARGE, torch.float32)
    assert row.status == "ok"
    ours, other = row.kernels
    assert (ours.kernel, ours.stage, ours.launches, ours.seconds) == ("distance_kernel", "stats", 1, 3e-3)
    assert ours.predicted is not None
    assert (other.stage, other.predicted) == ("other", None)


def test_every_kernel_has_the_file_it_is_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = """
        #include "kernels.h"
        __device__ void helper(float* x) {}
        extern "C" __global__ void __launch_bounds__(max_warps * warp_size) chase(Wide* band) {}
        extern "C" __global__ void __launch_bounds__(f(1), (2))
            pack_band(const Scalar* a, long long n) {}
        extern "C" __global__ void plain (Scalar* a) {}
        """
    (tmp_path / "bidiagonal.cu").write_text(textwrap.dedent(source))
    monkeypatch.setattr(sources, "folder", lambda: tmp_path)
    found = kernel_stages()
    assert {name for name, stage in found.items() if stage == "bidiagonal"} == {"chase", "pack_band", "plain"}
    assert found["spectrum_kernel"] == found["distance_kernel"] == "stats"
    assert not any(name.startswith("_") for name in found)


def test_the_kernels_of_this_checkout_are_found() -> None:
    for file in sources.folder().glob("*.cu"):
        assert file.read_text().count("__global__") == list(kernel_stages().values()).count(file.stem)


# The device


def test_kernel_times_are_those_of_the_device() -> None:
    def event(key: str, device: DeviceType, microseconds: float, annotation: bool = False) -> Any:
        found = SimpleNamespace(key=key, count=2, device_type=device, is_user_annotation=annotation)
        found.self_device_time_total = microseconds
        return found

    events = [
        event("cudaLaunchKernel", DeviceType.CPU, 0),
        event("panel", DeviceType.CUDA, 10),
        event("my region", DeviceType.CUDA, 99, annotation=True),
        event("chase", DeviceType.CUDA, 30),
    ]
    assert kernel_times(events) == [KernelTime("chase", 2, 30e-6), KernelTime("panel", 2, 10e-6)]


def test_torch_profiler_has_what_is_read_of_it() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(3).sum()
    assert len(profile.key_averages()) > 0
    assert kernel_times(profile.key_averages()) == []  # reads every field, and nothing ran on a device


def test_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    names = device._STATE
    tool.write_text(f"#!/bin/sh\necho '{', '.join(f'v{i}' for i in range(len(names)))}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert nvidia_smi("GPU-1") == {name: f"v{i}" for i, name in enumerate(names)}
    tool.write_text("#!/bin/sh\necho 'Unable to determine the device handle' >&2\nexit 9\n")
    assert nvidia_smi("GPU-1") == {"error": "nvidia-smi: Unable to determine the device handle"}
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert nvidia_smi("GPU-1") == {"error": "nvidia-smi: FileNotFoundError"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_no_device_is_an_error() -> None:
    with pytest.raises(NoGpuError, match="nothing is measured on another device instead"):
        cuda_gpu()


# The parts that are processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "counts"),
    [
        ("pass", "ok", (2, 1, 0)),
        ("assert 'found' == 'wanted'", "failed: pytest exited with 1", (2, 0, 1)),
        ("pytest.skip('needs a GPU')", "failed: every test was skipped", (2, 0, 0)),
        ("import time; time.sleep(60)", "failed: not done after 8 s", None),
    ],
)
def test_marked_tests(body: str, status: str, counts: tuple[int, int, int] | None, tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(
        "import pytest\n\n"
        f"@pytest.mark.gpu\ndef test_marked():\n    {body}\n\n"
        "@pytest.mark.gpu\n@pytest.mark.skip(reason='never')\ndef test_skipped():\n    pass\n\n"
        "def test_other():\n    assert False\n"
    )
    found = run_marked_tests(8.0 if counts is None else 60.0, ["--rootdir", str(tmp_path), str(file)])
    assert found["status"] == status
    if counts is not None:
        assert (found["tests"], found["passed"], found["failures"]) == counts
        assert found["seconds"] > 0
    assert ("found" in found.get("output", "")) == (counts == (2, 0, 1))


@pytest.mark.slow
def test_no_marked_tests_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_other():\n    pass\n")
    found = run_marked_tests(60.0, ["--rootdir", str(tmp_path), str(tmp_path / "test_it.py")])
    assert found["status"] == "failed: no test is marked gpu"


@pytest.mark.slow
def test_first_use_in_new_processes() -> None:
    found = measure_first_use("cpu", 120.0)
    for when in ("cold", "warm"):
        one = found[when]
        assert one["import"] > 0.01
        assert {(tuple(call["shape"]), call["dtype"]) for call in one["calls"]} == {
            (shape, dtype)
            for shape in ((2, 160, 160), (2, 480, 160), (64, 32, 32))
            for dtype in ("float32", "float64")
        }
        assert all(call["first"] > 0 and call["second"] > 0 for call in one["calls"])
    with pytest.raises(RuntimeError, match=r"the first call failed: .*no_such_device"):
        measure_first_use("no_such_device", 120.0)


# The whole


@pytest.fixture
def report(machine: Machine, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """The command on small stacks: its exit code and folder."""
    patch = machine.patch
    patch.setattr(commands, "cuda_gpu", lambda: machine.gpu)
    patch.setattr(commands, "nine_models", lambda: [SQUARE, WIDE, LARGE])
    for module in (command_line, commands):
        patch.setattr(module, "gemm_rate", lambda dtype, device: 1e12)
    patch.setattr(command_line, "versions", VERSIONS)
    patch.setattr(gpu_report, "measure_first_use", lambda device, seconds: FIRST_USE)
    patch.setattr(gpu_report, "run_marked_tests", lambda seconds: PASSED)

    def call(*arguments: str, pictures: bool = False) -> tuple[int, Path]:
        if not pictures:
            patch.setattr(plots, "draw_all", lambda data, folder: {})
        folder = tmp_path / "a" / "report"
        return command.main(["gpu-report", f"--out={folder}", *arguments]), folder

    return call


def test_the_report(report: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = report()
    assert code == 0
    assert capsys.readouterr().out == f"{folder / 'report.md'}: ok\n"
    text, data = written(folder)
    assert set(data) == {
        *("schema_version", "date_utc", "arguments", "machine", "versions", "capabilities", "gemm"),
        *("gpu", "chip", "peers", "budget_seconds", "state_before", "state_after", "tests", "first_use"),
        *("look", "stages", "cases", "seconds", "status"),
    }
    assert data["budget_seconds"] == 600
    assert [(row["m"], row["dtype"]) for row in data["cases"]] == [
        *((40, "float32"), (30, "float32"), (96, "float32")),
        *((40, "float64"), (30, "float64"), (96, "float64")),
    ]
    assert str(tmp_path) not in text + json.dumps(data)
    assert re.findall(r"^## (.*)$", text, re.M) == [
        *("Machine", "Tests", "First use", "A look at GPT-2 124M", "Singular values", "Pictures"),
        *("Kernel by kernel", "Not measured", "Again"),
    ]
    assert "All tests passed, and all of the 6 stacks measured passed the accuracy gate." in text
    assert "| `torch` | 3 | 4.00 | 4.00 | 4.00 |" in text
    assert "4 passed, 0 failures, 0 errors, 1 skipped" in text
    assert "| empty caches | 1.50 s | 500 ms | 9.00 s | 1.00 ms | 9.00 s |" in text
    assert "| 6×40×40 | `ours` | 6 of 6 | 1.00 ms | 1.00 ms–1.00 ms |  |  | " in text
    assert "| stats | `distance_kernel` | 1 | 3.00 ms | 75.0 % |" in text


def test_the_report_stands_by_itself(report: Any) -> None:
    """Its pictures are beside it, and its data is enough to write it again."""
    _, folder = report(pictures=True)
    text, data = written(folder)
    files = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert files == [
        *(f"{what}_{dtype}.png" for dtype in ("float32", "float64") for what in ("times", "errors")),
        "stages.png",
    ]
    for file in files:
        content = (folder / file).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 8000
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", *files}
    assert markdown(data, draw_all(data, folder)) == text


def test_tables_have_as_many_cells_as_headings(report: Any) -> None:
    _, folder = report()
    widths = [
        {line.count(" | ") for line in table.splitlines()}
        for table in re.findall(r"(?:^\|.*\n)+", (folder / "report.md").read_text("utf-8"), re.M)
    ]
    assert len(widths) > 8
    assert all(len(each) == 1 for each in widths)


def test_a_failing_section_fails_the_report_and_leaves_the_others(report: Any, machine: Machine) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture")

    machine.patch.setattr(gpu_report, "measure_first_use", broken)
    machine.gpu = dataclasses.replace(machine.gpu, profile=broken)
    code, folder = report(pictures=True)
    text, data = written(folder)
    assert code == 1
    assert data["first_use"]["status"].startswith("failed: RuntimeError: nvrtc")
    assert data["status"].startswith("first_use: failed: RuntimeError: nvrtc")
    assert "3 stacks, the first: failed: RuntimeError: nvrtc" in data["status"]
    assert "Not all is well: first_use" in text
    assert [row["status"] for row in data["cases"]] == ["ok"] * 6
    assert "stages.png" not in text


def test_failed_tests_fail_the_report(report: Any, machine: Machine) -> None:
    bad = {**PASSED, "status": "failed: pytest exited with 1", "failures": 1, "output": "E   assert 1 == 2"}
    machine.patch.setattr(gpu_report, "run_marked_tests", lambda seconds: bad)
    code, folder = report()
    assert code == 1
    assert "E   assert 1 == 2" in (folder / "report.md").read_text("utf-8")


def test_the_budget_drops_stacks_and_names_them(report: Any) -> None:
    code, folder = report("--max-seconds=16")
    text = (folder / "report.md").read_text("utf-8")
    assert code == 0
    dropped = re.findall(r"^- (.*): not measured: not in the budget of \d+ s$", text, re.M)
    assert "4×96×96, float64" in dropped
    assert len(dropped) == 6  # rendering keeps 15 s


def test_interruption_writes_what_there_is(report: Any, machine: Machine) -> None:
    def interrupted(gpu: Gpu, case: Case, dtype: torch.dtype) -> Any:
        raise KeyboardInterrupt

    machine.patch.setattr(gpu_report, "measure_stages", interrupted)
    code, folder = report()
    assert code == 130
    data = json.loads((folder / "report.json").read_text("utf-8"))
    assert data["status"] == "interrupted"
    assert data["look"]["status"] == "ok"
    assert "stages" not in data
    assert (folder / "report.md").exists()


def test_interrupted_among_the_stacks_nothing_more_is_started(report: Any, machine: Machine) -> None:
    def interrupted(A: Tensor) -> Tensor:
        raise KeyboardInterrupt

    machine.patch.setitem(PEERS, "torch-loop", Baseline(("cpu",), interrupted))
    code, folder = report()
    text, data = written(folder)
    assert code == 130
    assert [(row["dtype"], row["status"]) for row in data["cases"]] == [
        ("float32", "not measured: interrupted")
    ] * 3
    assert "**Not all is well: interrupted**" in text


def test_where_ours_is_torch_the_report_says_so(report: Any, machine: Machine) -> None:
    plan = Plan("reference", "torch", ("torch.linalg.svdvals",), "no kernel")
    machine.patch.setattr(spectral_fast, "explain", lambda *_: plan)
    _, folder = report()
    text = (folder / "report.md").read_text("utf-8")
    assert "nothing of ours was timed" in text
    assert "Nothing was compared." in text


def test_verdict_counts_what_failed() -> None:
    data = {"tests": PASSED, "first_use": {}, "look": {"status": "ok"}, "stages": [], "cases": []}
    assert verdict(data) == "ok"
    data["cases"] = [{"status": "not measured: not in the budget of 9 s"}, {"status": "out of memory"}]
    assert verdict(data) == "ok"
    data["cases"] += [{"status": "accuracy gate failed: matrix 1 of 3 errs"}]
    assert verdict(data) == "1 stacks, the first: accuracy gate failed: matrix 1 of 3 errs"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_cuda_the_command_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        command.main(["gpu-report", f"--out={tmp_path / 'report'}"])
    assert raised.value.code == 2
    assert "nothing is measured on another device instead" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.patch.setattr(commands, "cuda_gpu", lambda: machine.gpu)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as raised:
        command.main(["gpu-report", f"--out={tmp_path / 'file' / 'report'}"])
    assert raised.value.code == 2
    assert "Not a directory" in capsys.readouterr().err


def test_missing_matplotlib_is_told_first(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.patch.setattr(commands, "cuda_gpu", lambda: machine.gpu)
    machine.patch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as raised:
        command.main(["gpu-report"])
    assert raised.value.code == 2
    assert "spectral_fast[demo]" in capsys.readouterr().err


def test_the_suite_is_the_nine_models() -> None:
    cases = gpu_report.nine_models()
    assert [(c.count, c.m, c.n) for c in cases] == [(c.count, c.m, c.n) for c in build_suite("nine-models")]
    assert {case.calls for case in cases} == {("batch",)}
    look = [case for case in cases if LOOK_MODEL in case.models]
    assert sum(case.count * case.stacks for case in look) == 72
