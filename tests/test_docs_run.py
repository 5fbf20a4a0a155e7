"""The Python of README and the guides runs as printed: a page's blocks in order, in one namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spectral_fast.monitor.parquet import read_run
from tests.doc_pages import ROOT, Block, blocks, pages
from tests.monitored import SMALL, look

SINKS = ROOT / "docs/sinks.md"
# What a page's reader has already.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/sinks.md": lambda: {"looks": [look(0), look(1, "tracked"), look(1500)]},
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run(page: Path, chosen: list[Block]) -> dict[str, Any]:
    """Runs blocks where they may write; README's each for itself, since one is what a reader copies."""
    names = {"__name__": "docs", **GIVEN.get(name(page), dict)()}
    for block in chosen:
        if page.name == "README.md":
            names = {"__name__": "docs"}
        exec(block.compiled(), names)
    return names


def python(page: Path, *kinds: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python" and block.kind in kinds]


PLAIN = [page for page in pages() if python(page, "") and page != SINKS]
SLOW = [page for page in pages() if python(page, "slow")]
TORCHRUN = [page for page in pages() if python(page, "torchrun")]


@pytest.mark.parametrize("page", PLAIN, ids=name)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, python(page, ""))


@pytest.mark.slow
@pytest.mark.timeout(600)  # trains: 43 s of a core
@pytest.mark.parametrize("page", SLOW, ids=name)
def test_page_with_what_takes_long(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run(page, python(page, "", "slow"))


def test_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pandas, wandb = pytest.importorskip("pandas"), pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = run(SINKS, python(SINKS, ""))
    wandb.teardown()
    assert names["table"].column_names == ["step", "name", "stable_rank", "stable_rank_error"]
    assert len(names["table"]) == len(pandas.read_parquet("runs/first")) == 3 * len(SMALL)
    assert read_run("runs/first")["step"].to_pylist() == [step for step in (0, 1, 1500) for _ in SMALL]
    assert "layer" in capsys.readouterr().out
    assert list(Path("runs/tensorboard").glob("events*"))
    assert list(Path("runs/wandb").glob("offline-run-*"))


@pytest.mark.parametrize("page", TORCHRUN, ids=name)
def test_page_on_two_ranks(page: Path, tmp_path: Path) -> None:
    page_script = tmp_path / "page.py"
    page_script.write_text("\n".join(block.code for block in python(page, "torchrun")), encoding="utf-8")
    # What still holds a process group at exit (a mesh does) leaves gloo's threads running, and then the
    # process may abort, seldom and on busy machines (pytorch issue 190489). So nothing of the page is held.
    script = tmp_path / "train.py"
    script.write_text(f"import gc, runpy\nrunpy.run_path({str(page_script)!r})\ngc.collect()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # What two ranks print may be interleaved.
    assert done.stdout.count("(Shard(dim=0),)") == done.stdout.count("torch.Size([6])") == 2
    assert done.stdout.count("exact") == done.stdout.count("1 exact") == 1  # rank 0 alone delivers
