"""docs/distributed.md's code runs as printed, under torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parent.parent / "docs/distributed.md"


def test_blocks_run_on_two_ranks(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 2
    script = tmp_path / "train.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    root = str(GUIDE.parent.parent)
    done = subprocess.run(
        [*torchrun, str(script)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # What two ranks print may be interleaved.
    assert done.stdout.count("(Shard(dim=0),)") == done.stdout.count("torch.Size([6])") == 2
    assert done.stdout.count("exact") == done.stdout.count("1 exact") == 1  # rank 0 alone delivers
