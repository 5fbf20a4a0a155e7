"""How a command that cannot do what was asked ends."""

from __future__ import annotations

import sys


def failed(why: object) -> int:
    """Say why on standard error; the exit code."""
    print(f"spectral-fast: error: {why}", file=sys.stderr)
    return 2
