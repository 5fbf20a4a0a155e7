"""README's code runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import spectral_fast

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block(block: str) -> None:
    exec(compile(block, str(README), "exec"), {"__name__": "readme"})


def test_there_are_blocks_for_each_kind_of_user() -> None:
    assert len(BLOCKS) >= 3


def test_every_field_is_defined() -> None:
    text = README.read_text(encoding="utf-8") + (README.parent / "docs/statistics.md").read_text(
        encoding="utf-8"
    )
    for name in vars(spectral_fast.spectral_stats(torch.eye(3))):
        assert name == "svdvals" or f"`{name}`" in text, name
