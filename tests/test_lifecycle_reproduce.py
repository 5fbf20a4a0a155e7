"""The small reproduction, tiny: that every part of it runs, resumes, and shows what was found."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.image
import pytest

from spectral_fast.cli import main
from spectral_fast.lifecycle.config import ModelConfig, TrainConfig
from spectral_fast.lifecycle.findings import findings
from spectral_fast.lifecycle.page import write_page
from spectral_fast.lifecycle.reproduce import Plan, Reproduction, name_of, reproduce


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text, some 60 KB of words."""
    folder = tmp_path_factory.mktemp("text")
    words = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "re") for b in ("da", "fe", "gi", "ho", "ju")]
    for number in range(12):
        order = (words[(number * 7 + i * i) % len(words)] for i in range(1000))
        (folder / f"{number}.txt").write_text(" ".join(order))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def plan(text: Path) -> Plan:
    return Plan(
        depths=(2, 3, 4, 5, 6),
        seeds=(0, 1),
        model=ModelConfig(layers=2, width=16, heads=2, context=32, vocabulary=300),
        training=TrainConfig(steps=50, batch=4, every=5, warm_up=5, lr=3e-3),
        data=text,
        evaluated_tokens=512,
        random_orders=3,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, text: Path, cache: None) -> tuple[Reproduction, Path]:
    """Interrupted after some runs, and gone on with."""
    out = tmp_path_factory.mktemp("reproduction")
    said: list[str] = []

    def interrupt(line: str) -> None:
        said.append(line)
        if len(said) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(out, plan(text), jobs=1, say=interrupt)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/model.safetensors")}
    assert len(finished) == 3
    result = reproduce(out, plan(text), jobs=1, say=said.append)
    assert all(path.stat().st_mtime_ns == moment for path, moment in finished.items())
    return result, out


def test_every_run_is_trained_and_measured(found: tuple[Reproduction, Path]) -> None:
    result, _ = found
    assert [(run.layers, run.seed) for run in result.runs] == result.plan.runs
    for run in result.runs:
        looks = run.looks.trajectories
        assert looks.depth == run.layers
        assert list(looks.steps) == list(range(0, 51, 5))
        assert run.summary.steps == 50
        assert (run.pruning is None) == (run.layers == 2)
        if run.importance is not None:
            assert run.importance.depth == run.layers
    phenomena = {(one.run, one.phenomenon) for one in result.measurements}
    assert ("", "scaling") in phenomena
    assert {(name_of(6, 1), name) for name in ("wave", "gradient", "asymmetry", "timescales")} <= phenomena


@pytest.fixture(scope="module")
def page(found: tuple[Reproduction, Path]) -> Path:
    result, out = found
    return write_page(result, out / "page")


def test_the_page_shows_all_of_it(found: tuple[Reproduction, Path], page: Path) -> None:
    result, _ = found
    content = page.read_text()
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", content)
    assert {"runs.png", "pruning.png", "importance.png", "scaling-alpha.png"} <= set(shown)
    assert set(shown) == {path.name for path in page.parent.glob("*.png")}
    for name in shown:
        assert matplotlib.image.imread(page.parent / name).std() > 0.01  # something is drawn
    rows = [one for measurement in result.measurements for one in findings(measurement)]
    section = content[content.index("## Every measurement") :]
    assert section.count("\n| ") == len(rows) + 1  # and the headings
    assert "nan" not in content.lower()


def test_counts_of_claims_are_those_of_the_findings(found: tuple[Reproduction, Path], page: Path) -> None:
    result, _ = found
    content = page.read_text()
    rows = [one for measurement in result.measurements for one in findings(measurement)]
    able = [one for one in rows if one.phenomenon == "asymmetry" and one.p_value == one.p_value]
    for statistic in ("stable_rank", "alpha"):
        mine = [one for one in able if one.statistic == statistic]
        claimed = sum(one.detected for one in mine)
        line = f"| Q and K move more than V and O | {statistic} | {claimed} of {len(mine)} |"
        assert line in content


@pytest.mark.slow
def test_runs_side_by_side_are_the_same(found: tuple[Reproduction, Path], text: Path, tmp_path: Path) -> None:
    """Two processes write the same weights as one."""
    result, out = found
    reproduce(tmp_path, plan(text), jobs=2)
    for run in result.runs:
        weights = Path("runs", run.name, "model.safetensors")
        assert (tmp_path / weights).read_bytes() == (out / weights).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "--jobs 0"),
        (["--depths", "4", "2"], "depths must ascend"),
        (["--seeds", "0"], "seeds must ascend"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_said(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lifecycle", "reproduce", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
