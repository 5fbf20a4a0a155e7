"""The check for lost time: a planted slow-down is flagged, and only that one; what it refuses to judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.regression import check, commands, stage_ratios
from benchmarks.regression.check import PROCESSES, StoredError, judge, load, store
from benchmarks.singular_values.stages import Stages, stages_of
from benchmarks.timing import Spread, spread

CASE = "128x128"
STAGES = ("load", "bidiagonal", "values")


def quiet(text: str) -> None:
    pass


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What every process measures; change it to slow a stage down."""
    now = {f"{CASE} {stage}": 0.01 * (place + 1) for place, stage in enumerate(STAGES)}
    now["384x384 band"] = 0.1

    def one_process(cases: Sequence[str]) -> dict[str, float]:
        return {name: ratio for name, ratio in now.items() if name.rpartition(" ")[0] in cases}

    monkeypatch.setattr(check, "one_process", one_process)
    return now


@pytest.fixture
def file(tmp_path: Path, figures: dict[str, float]) -> Path:
    path = tmp_path / "measured/ratios.json"
    store(path, check.measure(stage_ratios.CASES, quiet), {})
    return path


def test_a_stage_that_lost_time(
    file: Path, figures: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert command.main(["check", f"--against={file}", f"--json={out}"]) == 0
    assert "0 of 4 stages lost" in capsys.readouterr().out
    figures[f"{CASE} values"] *= 1.12
    assert command.main(["check", f"--against={file}", f"--json={out}"]) == 1
    printed = capsys.readouterr().out
    assert "1 of 4 stages lost more than 10% beyond their spread" in printed
    assert f"{CASE} values: 0.0336 and 0.0336 of torch's time in two measurements, stored 0.03" in printed
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows if row["lost"]] == [f"{CASE} values"]
    assert rows[2]["change"] == pytest.approx(0.12)


def test_within_the_margin_nothing_is_lost(file: Path, figures: dict[str, float]) -> None:
    figures[f"{CASE} load"] *= 1.09
    figures[f"{CASE} values"] *= 0.5
    assert not any(verdict.lost for verdict in judge(load(file), quiet))


def test_slower_once_is_not_lost(
    file: Path, figures: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second measurement is of the case in question, no other."""
    figures["384x384 band"] *= 2
    asked: list[tuple[str, ...]] = []
    right = check.one_process

    def recovers(cases: Sequence[str]) -> dict[str, float]:
        asked.append(tuple(cases))
        if len(asked) == PROCESSES:
            figures["384x384 band"] /= 2
            return {**right(cases), "384x384 band": 0.2}
        return right(cases)

    monkeypatch.setattr(check, "one_process", recovers)
    verdicts = {verdict.name: verdict for verdict in judge(load(file), quiet)}
    assert asked == [stage_ratios.CASES] * PROCESSES + [("384x384",)] * PROCESSES
    assert verdicts["384x384 band"].again is not None
    assert not verdicts["384x384 band"].lost
    assert verdicts[f"{CASE} load"].again is None


def test_the_spread_is_given_the_benefit() -> None:
    stored = spread([1.0, 1.0, 1.1, 1.2, 1.2])
    found = spread([1.25, 1.3, 1.4, 1.4, 1.4])  # 27 % more in the median, but quartiles of 1.2 and 1.3
    assert not check.slower(found, stored)
    assert check.slower(Spread(1.4, 1.3, 1.33, 1.4, 1.5), stored)


@pytest.mark.parametrize(("name", "other"), [("cpu", "Another CPU"), ("isa", "none"), ("torch", "1.0")])
def test_ratios_of_another_machine_are_not_judged(
    name: str, other: str, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(cases: Sequence[str]) -> dict[str, float]:
        raise AssertionError("measured in vain")

    monkeypatch.setattr(check, "one_process", never)
    data = json.loads(file.read_text(encoding="utf-8"))
    data["here"][name] = other
    file.write_text(json.dumps(data), encoding="utf-8")
    assert command.main(["check", f"--against={file}"]) == 2
    message = capsys.readouterr().err
    assert f"belongs to {name} {other!r}, and here it is " in message
    assert "--write" in message


def test_files_that_are_none(file: Path, figures: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(StoredError, match="No such file or directory; store ratios with --write"):
        load(tmp_path / "nowhere.json")
    odd = tmp_path / "odd.json"
    for text in ("", "[]", "{}", '{"schema_version": 1, "here": {}, "ratios": {"a": [1]}}'):
        odd.write_text(text, encoding="utf-8")
        with pytest.raises(StoredError, match="is no file of ratios"):
            load(odd)
    figures["384x384 new"] = 1.0
    with pytest.raises(StoredError, match="but not both: 384x384 new; store anew"):
        judge(load(file), quiet)


def test_wrong_values_have_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_clock(*_: Any) -> None:
        raise AssertionError("timed before the gate")

    monkeypatch.setattr(stage_ratios, "interleave", no_clock)
    monkeypatch.setattr(stage_ratios, "stages_of", lambda A, threads: (2 * stages_of(A, threads)[0], {}))
    with pytest.raises(stage_ratios.ValuesError, match="the clocked call has other values"):
        stage_ratios.ratios([CASE])


def in_this_process(monkeypatch: pytest.MonkeyPatch, planted: float) -> None:
    """Real measurements of one case, but in this process; its stage values takes `planted` times as long."""

    def slowed(A: torch.Tensor, threads: int) -> tuple[torch.Tensor, Stages]:
        S, stages = stages_of(A, threads)
        seconds, unit, amount = stages["values"]
        return S, {**stages, "values": (planted * seconds, unit, amount)}

    monkeypatch.setattr(stage_ratios, "stages_of", slowed)
    monkeypatch.setattr(stage_ratios, "REPEATS", 5)
    monkeypatch.setattr(check, "CASES", (CASE,))
    monkeypatch.setattr(check, "PROCESSES", 2)
    monkeypatch.setattr(check, "one_process", lambda cases: stage_ratios.ratios(cases))


def test_a_slow_stage_in_a_real_measurement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, two_threads: None
) -> None:
    """Twenty times its time, which no noise of the machine is: what else is flagged is not judged here."""
    torch.set_num_threads(1)
    in_this_process(monkeypatch, 1.0)
    path = tmp_path / "ratios.json"
    store(path, check.measure(check.CASES, quiet), {})
    stored = load(path)
    assert set(stored) == {f"{CASE} {name}" for name in (*STAGES, "svdvals", "stats")}
    inside = sum(stored[f"{CASE} {stage}"].median for stage in STAGES)
    assert 0 < inside < 2 * stored[f"{CASE} svdvals"].median
    in_this_process(monkeypatch, 20.0)
    lost = {verdict.name for verdict in judge(stored, quiet) if verdict.lost}
    assert f"{CASE} values" in lost


@pytest.mark.slow
def test_the_command_in_processes_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored ratio of one stage is doctored to a third: that one is flagged, no other."""
    monkeypatch.setattr(check, "CASES", (CASE,))
    monkeypatch.setattr(commands, "CASES", (CASE,))
    path = tmp_path / "ratios.json"
    assert command.main(["check", "--write", f"--against={path}"]) == 0
    data = json.loads(path.read_text(encoding="utf-8"))
    stage = f"{CASE} bidiagonal"
    data["ratios"][stage] = [ratio / 3 for ratio in data["ratios"][stage]]
    path.write_text(json.dumps(data), encoding="utf-8")
    capsys.readouterr()
    assert command.main(["check", f"--against={path}"]) == 1
    printed = capsys.readouterr().out
    assert "1 of 5 stages lost" in printed
    assert f"{stage}: " in printed
