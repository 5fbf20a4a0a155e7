"""The code in README and the guides runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import spectral_fast

README = Path(__file__).parent.parent / "README.md"
GUIDES = (README.parent / "docs/monitor.md", README.parent / "docs/tracking.md")


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


BLOCKS = blocks(README)
ALL = [
    pytest.param(page, block, id=f"{page.stem}-{i}")
    for page in (README, *GUIDES)
    for i, block in enumerate(blocks(page))
]


@pytest.mark.parametrize(("page", "block"), ALL)
def test_block(page: Path, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for what a block writes
    exec(compile(block, str(page), "exec"), {"__name__": "readme"})


def test_there_are_blocks_for_each_kind_of_user() -> None:
    assert len(BLOCKS) >= 3


def test_every_field_is_defined() -> None:
    text = README.read_text(encoding="utf-8") + (README.parent / "docs/statistics.md").read_text(
        encoding="utf-8"
    )
    for name in vars(spectral_fast.spectral_stats(torch.eye(3))):
        assert name == "svdvals" or f"`{name}`" in text, name
