"""The working tree against another commit: both really run, whatever the other one lacks or does wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks.regression import commands, commits
from benchmarks.regression.commits import CommitError, CommitRow, WorkerError
from benchmarks.regression.watched import MATRIX_KINDS, Operation, operations

ROOT = Path(__file__).parents[1]


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This package with its extension, and an older commit: slower, wrong, with less in it.

    Its setup.py builds nothing: the extension is in the commits.
    """
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "--quiet")
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "spectral_fast", folder / "spectral_fast", ignore=leave)
    init = folder / "spectral_fast/__init__.py"
    now = init.read_text(encoding="utf-8")
    (folder / "setup.py").write_text("raise SystemExit('no compiler')\n", encoding="utf-8")
    commit(folder, "broken")
    (folder / "setup.py").write_text("", encoding="utf-8")
    init.write_text("raise ImportError('too old')\n", encoding="utf-8")
    commit(folder, "unusable")
    init.write_text(now + OLDER, encoding="utf-8")
    commit(folder, "older")
    init.write_text(now, encoding="utf-8")
    for built in folder.glob("spectral_fast/_cpu*.so"):
        built.touch()
    return folder


# 5 ms more than a call takes, statistics of another matrix, and an operator that is not there.
OLDER = """
import time
from spectral_fast import _ops
del _ops.gram_product
_now, _stats = svdvals, spectral_stats
def svdvals(A):
    time.sleep(5e-3)
    return _now(A)
def spectral_stats(A, **options):
    return _stats(1.01 * A, **options)
"""


def commit(folder: Path, name: str) -> None:
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--message", name)
    git(folder, "tag", name)


def worktrees(folder: Path) -> int:
    listed = subprocess.run(
        ["git", "-C", str(folder), "worktree", "list"], check=True, capture_output=True, encoding="utf-8"
    )
    return len(listed.stdout.splitlines())


def test_another_commit(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "ROOT", repository)
    monkeypatch.setattr(commits, "PAIR_SECONDS", 0.01)
    file = tmp_path / "out.json"
    code = command.main(["base", "older", "--shapes=64x48", "--threads=1", f"--json={file}"])
    assert code == 0
    assert worktrees(repository) == 1
    data = json.loads(file.read_text(encoding="utf-8"))
    assert len(data["base_commit"]) == 40
    rows = {row["operation"]: row for row in data["rows"]}
    assert list(rows) == list(MATRIX_KINDS)
    assert {row["case"] for row in data["rows"]} == {"64x48"}
    assert rows["gram_product"]["status"] == "base: not measured: has no spectral_fast._ops:gram_product"
    assert rows["spectral_stats"]["status"].startswith("base: accuracy gate failed: matrix 0 ")
    for kind in ("svdvals", "tracked_look", "tail_stats"):
        row = rows[kind]
        assert row["status"] == "ok"
        assert len(row["seconds"]) == len(row["our_seconds"]) == commits.PAIRS_LEAST
    slow = rows["svdvals"]
    assert min(slow["seconds"]) > 5e-3 > min(slow["our_seconds"])
    assert slow["verdict"] == "faster"
    printed = capsys.readouterr().out
    assert "3 of 5 operations measured in both" in printed
    assert str(repository) not in json.dumps(data)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("nonsense", "'nonsense' names no commit here"),
        ("--all", "'--all' names no commit here"),
        ("broken", "failed; it needs a C++17 compiler, setuptools and pybind11:\nno compiler"),
        ("unusable", "base: the package cannot be used: ImportError: too old"),
    ],
)
def test_a_commit_that_cannot_be_measured(
    ref: str,
    message: str,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(commands, "ROOT", repository)
    assert command.main(["base", "--shapes=8", "--", ref]) == 2
    assert message in capsys.readouterr().err
    assert worktrees(repository) == 1


def test_an_extension_older_than_its_sources(tmp_path: Path) -> None:
    for name in ("spectral_fast", "csrc/cpu"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(CommitError, match="the working tree has no extension"):
        commits.require_built(tmp_path)
    (tmp_path / "setup.py").touch()
    (tmp_path / "spectral_fast/_cpu.so").touch()
    commits.require_built(tmp_path)
    source = tmp_path / "csrc/cpu/band.inl"
    source.touch()
    built = source.stat().st_mtime - 10
    os.utime(tmp_path / "spectral_fast/_cpu.so", (built, built))
    os.utime(tmp_path / "setup.py", (built, built))
    with pytest.raises(CommitError, match=r"older than csrc/cpu/band\.inl"):
        commits.require_built(tmp_path)


class Scripted:
    """A worker that answers as it is told."""

    def __init__(self, name: str, answer: dict[str, Any], seconds: list[float]) -> None:
        self.name = name
        self._answer, self._seconds = answer, seconds
        self.order: list[str] = []
        self.calls: set[int] = set()

    def prepare(self, operation: Operation) -> dict[str, Any]:
        return self._answer

    def sample(self, calls: int) -> float:
        self.order.append(self.name)
        self.calls.add(calls)
        if not self._seconds:
            raise WorkerError(f"{self.name}: its process ended with -9; its messages are above")
        return self._seconds.pop(0)


def rows_of(ours: Scripted, base: Scripted) -> list[CommitRow]:
    two = [Operation("svdvals", (8, 8)), Operation("svdvals", (9, 9))]
    return list(commits._rows(ours, base, two, lambda text: None))  # type: ignore[arg-type]


def test_pairs_change_their_order() -> None:
    """And both make as many calls a sample."""
    ready = {"seconds": 1.0, "calls": 1}
    ours, base = Scripted("ours", ready, [1.0] * 16), Scripted("base", {**ready, "calls": 64}, [0.9] * 16)
    ours.order = base.order  # one list
    row = rows_of(ours, base)[0]
    assert base.order[:8] == ["ours", "base", "base", "ours"] * 2
    assert len(row.ours) == len(row.base) == 8
    assert ours.calls == base.calls == {64}
    assert row.ratio is not None
    assert row.ratio.median == pytest.approx(0.9)
    assert row.verdict == "slower"


def test_within_the_margin_nobody_is_slower() -> None:
    for ratio in (0.97, 1.04):
        row = CommitRow(Operation("svdvals", (8, 8)), ours=[1.0] * 8, base=[ratio] * 8)
        assert row.verdict == ""


def test_only_ours_fails_the_run() -> None:
    ready, wrong = {"seconds": 1.0, "calls": 1}, {"wrong": "a value"}
    broken = rows_of(Scripted("ours", wrong, []), Scripted("base", ready, []))
    assert [row.failed for row in broken] == [True, True]
    assert broken[0].status == "ours: accuracy gate failed: a value"
    theirs = rows_of(Scripted("ours", ready, []), Scripted("base", {"failed": "failed: x"}, []))
    assert [row.failed for row in theirs] == [False, False]
    died = rows_of(Scripted("ours", ready, [1.0] * 9), Scripted("base", ready, []))
    assert [row.failed for row in died] == [True, True]
    assert died[0].status == "failed: base: its process ended with -9; its messages are above"
    assert died[0].ours == []


def test_what_is_watched() -> None:
    names = [operation.name for operation in operations(None)]
    assert len(names) == len(set(names))
    for name in ("svdvals 8192x2048", "svdvals 256x128x128", "svdvals 1408x352", "svdvals 512x512 float64"):
        assert name in names
    assert {operation.kind for operation in operations(None)} == {*MATRIX_KINDS, "fit_powerlaw"}
    assert all(max(operation.shape[-2:]) <= 768 for operation in operations(768))
    for operation in operations(None):
        assert operation.missing() == []
        assert all(amount > 0 for amount in operation.work.values())


@pytest.mark.parametrize("given", ["--shapes=0", "--shapes=1x2x3x4", "--max-n=0", "--shapes=8 --max-n=8"])
def test_bad_usage(given: str) -> None:
    with pytest.raises(SystemExit) as raised:
        command.main(["base", "HEAD", *given.split()])
    assert raised.value.code == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_this_commit_builds_and_compares(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (ROOT / ".git").exists() or not shutil.which("c++"):
        pytest.skip("no git checkout, or no compiler")
    monkeypatch.setattr(commits, "PAIR_SECONDS", 0.01)
    monkeypatch.setattr(commits, "require_built", lambda tree: None)  # built, but when says nothing here
    before = worktrees(ROOT)
    assert command.main(["base", "HEAD", "--max-n=768", "--threads=2"]) == 0
    assert worktrees(ROOT) == before
    printed = capsys.readouterr().out
    watched = len(operations(768))
    assert f"{watched} of {watched} operations measured in both" in printed
