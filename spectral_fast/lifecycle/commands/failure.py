"""How a command that cannot do what was asked ends."""

from __future__ import annotations

import sys


def failed(why: object) -> int:
    """Say why on standard error; the exit code."""
    print(f"spectral-fast: error: {why}", file=sys.stderr)
    return 2


def not_installed(error: ImportError) -> int:
    """Name the extra that brings all these commands need, whichever package was missed first."""
    missed = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    return failed(f"{missed.name} is not installed: pip install 'spectral_fast[lifecycle]'")
