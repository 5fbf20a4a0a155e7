"""The code of docs/sinks.md runs as printed, in order, on looks as a monitor delivers them."""

import re
from pathlib import Path

import pandas as pd
import wandb

from spectral_fast.monitor.parquet import read_run, schema
from tests.monitored import SMALL, look

TEXT = (Path(__file__).parent.parent / "docs/sinks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_the_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = {"looks": [look(0), look(1, "tracked"), look(1500)]}
    for block in BLOCKS:
        exec(compile(block, "docs/sinks.md", "exec"), names)
    wandb.teardown()
    assert len(BLOCKS) == 5
    assert names["table"].column_names == ["step", "name", "stable_rank", "stable_rank_error"]
    assert len(names["table"]) == len(pd.read_parquet("runs/first")) == 3 * len(SMALL)
    assert read_run("runs/first")["step"].to_pylist() == [step for step in (0, 1, 1500) for _ in SMALL]
    out = capsys.readouterr().out
    assert "layer" in out
    assert list(Path("runs/tensorboard").glob("events*"))
    assert list(Path("runs/wandb").glob("offline-run-*"))


def test_every_column_is_described():
    for name in schema().names:
        statistic = name in schema().names[13:-7]
        assert statistic or f"`{name}`" in TEXT, name
