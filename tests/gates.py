"""What the compile gates need and a machine may lack.

A test without it is skipped and says why. With SPECTRAL_FAST_REQUIRE_GATES=1, as in .ci/run, it fails.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skips the test or the module, or fails it where every gate has to run."""
    if os.environ.get("SPECTRAL_FAST_REQUIRE_GATES") == "1":
        pytest.fail(f"{reason} (SPECTRAL_FAST_REQUIRE_GATES=1)", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def module(name: str) -> ModuleType:
    """A module of the test extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing(f"{name} cannot be imported: the test extra has it on Linux ({error})")
