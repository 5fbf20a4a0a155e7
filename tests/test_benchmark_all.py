"""``python -m benchmarks all`` and ``readme``: budget, JSON, pages, and README from the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import timing
from benchmarks.rows import measure_in_turn
from benchmarks.singular_values import conditioning, memory
from benchmarks.singular_values.conditioning import METHODS, conditioned, measure_conditioning
from benchmarks.singular_values.growth import thread_counts
from benchmarks.training import monitor, tracking
from benchmarks.whole import commands as whole_commands
from benchmarks.whole import readme, report, sections
from benchmarks.whole.markdown import markdown
from benchmarks.whole.operations import operations
from benchmarks.whole.plots import draw_all
from benchmarks.whole.readme import MEASURED, README, ReadmeError, compact, rewritten
from benchmarks.whole.report import NAMES, SECTIONS, Section, verdict
from benchmarks.whole.sizes import DEFAULT, FULL, Sizes
from benchmarks.whole.tables import TABLES
from examples import train_gpt
from examples.train_gpt import Size

TINY = Sizes(
    layers=1,
    max_n=8,
    nine_calls=("batch",),
    float64_max_n=8,
    growth=(8, 16),
    batches={8: (1, 4)},
    threads=((1, 24),),
    conditions=(0, 6),
    seeds=1,
    conditioned=(20, 6),
    stages=((136, 136),),
    stats_n=(24,),
    operations=48,
    tail=(48,),
    leading=((64, 48),),
    memory=((1, 200, 200),),
    tracking=Size(width=64, heads=2, layers=1, batch=2, context=16),
    tracking_steps=25,
    monitor=Size(width=32, heads=2, layers=1, batch=2, context=16),
    monitor_steps=100,
    weightwatcher=(),
    layers_watched=1,
    randomize=(False,),
)
# The others take seconds (weights, models, training runs) and have tests of their own.
QUICK = ("growth", "batches", "float64", "threads", "conditioning", "stages", "memory", "leading")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """The command: its exit code and what it wrote into the folder."""
    monkeypatch.setattr(whole_commands, "DEFAULT", TINY)
    monkeypatch.setattr(memory, "METHODS", ("ours",))  # a process each
    monkeypatch.setattr(report, "gemm_rate", lambda dtype, device: 1e11)
    monkeypatch.setattr(sections, "gemm_rate", lambda dtype, device: 1e11)
    monkeypatch.setattr(sections, "_nine_models", lambda sizes, max_n: sections.size_cases([12]))

    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = command.main(["all", f"--out={tmp_path}", *arguments])
        return code, json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))

    return call


@pytest.fixture(autouse=True)
def plain_memory() -> None:
    """As users run it: memory filled with NaN on the way would be counted and timed."""
    torch.utils.deterministic.fill_uninitialized_memory = False


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "REPEATS_MOST", timing.REPEATS_LEAST)
    monkeypatch.setattr(timing, "REST_SECONDS", 0.0)


def six_digits(data: Any) -> Any:
    """As compact rounds, with every sample: 68.7499999 is not to be rounded twice."""
    if isinstance(data, dict):
        return {key: six_digits(value) for key, value in data.items()}
    if isinstance(data, list):
        return [six_digits(value) for value in data]
    return float(f"{data:.6g}") if isinstance(data, float) else data


def test_a_report_is_json_markdown_and_plots(run: Any, tmp_path: Path) -> None:
    code, data = run(f"--sections={','.join(QUICK)}")
    assert code == 0, data["status"]
    assert data["status"] == "ok"
    assert [name for name in NAMES if name in QUICK] == list(data["sections"])
    for section in data["sections"].values():
        assert section["status"] == "ok"
        assert section["rows"]
        assert [row["status"] for row in section["rows"]] == ["ok"] * len(section["rows"])
    assert {path.name for path in tmp_path.iterdir()} == {
        *("bench.json", "bench.md", "bench-growth.png", "bench-threads.png", "bench-memory.png"),
        *("bench-conditioning.png", "bench-roofline.png", "bench-speedup.png"),
    }
    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    for name in QUICK:
        for line in TABLES[name][0](data["sections"][name]).splitlines():
            assert f"\n{line}\n" in text
    # A page says the same from the JSON without samples.
    small = json.loads(json.dumps(compact(data)))
    assert len(json.dumps(small)) < len(json.dumps(data))
    whole = six_digits(data["sections"]["threads"])
    assert TABLES["threads"][0](small["sections"]["threads"]) == TABLES["threads"][0](whole)


def test_a_section_alone_goes_into_the_report_that_is_there(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run("--sections=growth")[1]["sections"]["growth"]
    code, data = run("--sections=batches")
    assert code == 0
    assert data["sections"]["growth"] == first
    assert list(data["sections"]) == ["growth", "batches"]

    monkeypatch.setattr(report, "versions", lambda: {"git_commit": "another"})
    with pytest.raises(SystemExit) as raised:
        run("--sections=batches")
    assert raised.value.code == 2
    assert "was measured elsewhere (versions.git_commit" in capsys.readouterr().err
    assert run("--sections=growth,batches")[0] == 0  # nothing of the other commit would stay


def test_another_file_is_not_overwritten(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench.json").write_text("[]", encoding="utf-8")
    with pytest.raises(SystemExit) as raised:
        run("--sections=growth")
    assert raised.value.code == 2
    assert "is no report of this command" in capsys.readouterr().err


def three_sections(*measures: Callable[..., dict[str, Any]]) -> tuple[Section, ...]:
    return tuple(
        Section(one.name, one.title, one.share, m) for one, m in zip(SECTIONS, measures, strict=False)
    )


def test_ctrl_c_keeps_what_is_measured(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(scope: Any) -> Any:
        raise KeyboardInterrupt

    def measured(scope: Any) -> Any:
        return {"status": "ok", "rows": []}

    monkeypatch.setattr(report, "SECTIONS", three_sections(measured, interrupted, measured))
    monkeypatch.setattr(whole_commands, "NAMES", NAMES[:3])
    code, data = run(f"--sections={','.join(NAMES[:3])}")
    assert code == 130
    assert [one["status"] for one in data["sections"].values()] == [
        "ok",
        "not measured: interrupted",
        "not measured: interrupted",
    ]


def test_ctrl_c_before_the_first_section_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "gemm_rate", interrupted)
    assert command.main(["all", f"--out={tmp_path}"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_section_that_fails_ends_with_1_and_the_others_are_measured(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(scope: Any) -> Any:
        raise RuntimeError("broken")

    def wrong(scope: Any) -> Any:
        return {"status": "ok", "rows": [{"m": 2, "n": 2, "status": "accuracy gate failed: off"}]}

    def measured(scope: Any) -> Any:
        return {"status": "ok", "rows": []}

    monkeypatch.setattr(report, "SECTIONS", three_sections(broken, wrong, measured))
    code, data = run(f"--sections={','.join(NAMES[:3])}")
    assert code == 1
    assert data["status"] == "minilm: failed: RuntimeError: broken; nine-models: accuracy gate failed: off"
    assert data["sections"][NAMES[2]]["status"] == "ok"


def test_time_that_is_left_goes_to_later_sections(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def measured(scope: Any) -> Any:
        given.append(scope.seconds)
        return {"status": "ok", "rows": []}

    monkeypatch.setattr(report, "SECTIONS", three_sections(measured, measured, measured))
    run(f"--sections={','.join(NAMES[:3])}", "--max-seconds=100")
    usable, shares = 90, [one.share for one in SECTIONS[:3]]
    assert given[0] == pytest.approx(usable * shares[0] / sum(shares), abs=2)
    assert given[-1] == pytest.approx(usable, abs=2)

    given.clear()
    _, data = run(f"--sections={','.join(NAMES[:3])}", "--max-seconds=1")
    assert given == []
    assert {one["status"] for one in data["sections"].values()} == {"not measured: not in the budget of 1 s"}


def test_what_does_not_fit_is_named() -> None:
    row = {"dtype": "float32", "asked": 1e6, "m": 4, "n": 4, "methods": [], "status": "not measured: time"}
    section = {"title": "T", "status": "ok", "seconds": 1.0, "rows": [row]}
    data = {"date_utc": "", "seconds": 1.0, "status": "ok", "gpu": "", "threads": 1, "gemm": {}, "peers": {}}
    data |= {"machine": {"cpu": "c", "cores": 1, "memory_bytes": 1}, "versions": {}}
    data |= {"capabilities": {"cpu": {"isa": "x"}}, "sections": {"conditioning": section}}
    assert "- float32, condition number 1e+06: not measured: time\n" in markdown(data, {})
    assert verdict(data) == "ok"


def test_default_sizes_are_part_of_the_full_ones() -> None:
    assert {one.name for one in SECTIONS} == set(TABLES)
    for name in ("growth", "threads", "conditions", "stages", "leading", "memory", "weightwatcher"):
        assert set(getattr(DEFAULT, name)) <= set(getattr(FULL, name)), name
    assert max(DEFAULT.growth) == 8192
    assert {1, 4096} <= set(DEFAULT.batches[64])
    assert [thread_counts(cores) for cores in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


# Conditioning


def test_the_oracle_of_conditioning_is_right_at_1e14() -> None:
    """sigma_n to 1e-3 of itself, against 60 digits: what a relative error of 1e-2 needs to be seen."""
    A = conditioned(10, 6, 1e14, torch.float64, 0)
    with mpmath.workdps(60):
        exact = sorted(float(one) for one in mpmath.svd_r(mpmath.matrix(A.tolist()), compute_uv=False))
    found = conditioning.exact_values(A)
    assert exact[-1] / exact[0] == pytest.approx(1e14, rel=0.1)
    np.testing.assert_allclose(found.astype(np.float64), exact[::-1], rtol=1e-3)


def test_gram_loses_half_of_the_digits_and_ours_does_not() -> None:
    rows = measure_conditioning((240, 136), [1e6], 1, 100.0, lambda text: None)
    assert [(row["dtype"], row["status"]) for row in rows] == [("float32", "ok"), ("float64", "ok")]
    found = {one["method"]: one for one in rows[1]["methods"]}
    assert set(found) == set(METHODS)
    # eps 1e6 = 2e-10 of sigma_n by a backward stable method, times c = 4 and some; eps 1e12 by a Gram matrix.
    for name in ("ours", "torch"):
        assert found[name]["smallest"] < 1e-8
        assert found[name]["error"] < 20
    for name in ("ours, driver gram", "eigvalsh(AᵀA)"):
        assert found[name]["smallest"] > 1e-7


def test_conditioning_that_does_not_fit_says_so() -> None:
    rows = measure_conditioning((4, 4), [1.0, 10.0], 1, -1.0, lambda text: None)
    assert {row["status"] for row in rows} == {"not measured: not in the budget of -1 s"}


# Memory


def test_peak_memory_sees_what_a_call_takes() -> None:
    size = 32 * 2**20

    def call() -> None:
        np.ones(size, dtype=np.uint8)

    peak = memory.peak_of(call)
    # The kernel counts pages in steps of up to 64 for each core; a mebibyte is four cores' worth.
    assert size - 2**20 <= peak < 1.25 * size
    assert memory.peak_of(lambda: None) < size / 8


def test_a_process_that_fails_or_takes_too_long_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "executable", "/bin/false")
    assert memory._in_fresh_process("ours")["status"] == "failed: exit code 1"
    monkeypatch.setattr(memory, "CALL_SECONDS", 1e-6)
    assert memory._in_fresh_process("ours")["status"] == "not measured: not done after 0 s"


# A training run, cut


def test_tracking_and_monitor_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:

    text = train_gpt.corpus()[: 2**18].clone()
    for module in (tracking, monitor):
        monkeypatch.setattr(module, "corpus", lambda: text)
    scope = sections.Scope(TINY, 1e-3, 1, {}, lambda text: None)
    monkeypatch.setattr(sections, "_EVERY", 5)
    found = sections.tracking(scope)
    assert (found["status"], found["steps"], TINY.tracking_steps) == ("ok", 5, 25)
    assert {one["statistic"] for one in found["summary"]} >= {"spectral_norm", "alpha_hill"}
    watched = sections.monitor(scope)
    assert (watched["status"], len(watched["stretches"])) == ("ok", 4)
    assert watched["by_difference"] is not None
    for name, section in (("tracking", found), ("monitor", watched)):
        for make in TABLES[name]:
            assert make(six_digits(section)) == make(json.loads(json.dumps(compact(section))))


# Statistics


def test_operations_without_a_suite() -> None:
    found = sections.other_operations(sections.Scope(TINY, 60.0, 1, {}, lambda text: None))
    assert [row["status"] for row in found["rows"]] == ["ok"] * 5
    assert len(TABLES["operations"][0](found).splitlines()) == 2 + 5


@pytest.mark.parametrize(("place", "wrong"), [(0, "off by "), (1, "matrix "), (2, "off by "), (3, "off by ")])
def test_a_wrong_operation_gets_no_time(place: int, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = operations(1, 48)[place]
    answer = row.ours()
    off = (answer[0] * 1.01, answer[1]) if place == 1 else answer * 1.01
    monkeypatch.setattr(row, "ours", lambda: off)
    measure_in_turn([row], None, None, lambda text: None)
    assert row.status.startswith(f"accuracy gate failed: {wrong}")
    assert "ratio" not in row.data()


# README


def test_readme_says_what_its_json_says() -> None:
    text = README.read_text(encoding="utf-8")
    data = json.loads(MEASURED.read_text(encoding="utf-8"))
    assert rewritten(text, data) == text
    assert MEASURED.stat().st_size < 300_000
    assert compact(data) == data
    page = markdown(data, {})
    for name, section in data["sections"].items():
        assert f"## {section['title']}\n" in page, name


def test_a_figure_changed_by_hand_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = README.read_text(encoding="utf-8")
    start = text.index("<!-- measured: values -->")
    place = text.index(" ms | ", start)
    other = tmp_path / "README.md"
    other.write_text(text[:place] + "1" + text[place:], encoding="utf-8")
    monkeypatch.setattr(whole_commands, "README", other)
    assert command.main(["readme", "--check"]) == 1
    assert "README differs" in capsys.readouterr().err
    other.write_text(text, encoding="utf-8")
    assert command.main(["readme", "--check"]) == 0


def test_readme_without_a_region_or_with_an_unknown_one() -> None:
    for text, wrong in (
        ("no region", "has no region"),
        ("<!-- measured: values -->\nnot closed", "is not closed"),
        ("<!-- measured: nothing -->\n<!-- end -->", "a region 'nothing'"),
    ):
        with pytest.raises(ReadmeError, match=wrong):
            rewritten(text, {})
    filled = rewritten("a\n<!-- measured: plots -->\nold\n<!-- end -->\nb", {})
    assert "old" not in filled
    assert rewritten(filled, {}) == filled


def test_plots_of_an_empty_report_are_none(tmp_path: Path) -> None:
    assert draw_all({"sections": {}}, tmp_path) == {}
    assert readme.compact({"seconds": [0.1] * 9, "roles": ["q", "k", "v", "o"], "short": [1, 2]}) == {
        "seconds": {"count": 9},
        "roles": ["q", "k", "v", "o"],
        "short": [1, 2],
    }
