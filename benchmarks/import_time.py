"""What ``import spectral_fast`` takes beyond ``import torch``.

Every sample is a fresh interpreter with its bytecode cached, as pip leaves an installation. Those that import
torch alone and those that go on to spectral_fast alternate. Two figures come of a pair: what passes between
the two imports of the second interpreter, and the difference between both interpreters' totals. The second
would also see torch's own import made slower by ours; it is as noisy as torch's import is long.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import command_line
from benchmarks.command_line import EXIT_FAILED, EXIT_OK, at_least
from benchmarks.machine import ROOT
from benchmarks.report import write_json
from benchmarks.timing import Spread, spread

# The aim: seconds beyond torch's import.
LIMIT = 50e-3
LEAST_PAIRS = 15

_SCRIPT = """\
import json, sys, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
if sys.argv[1] == "both":
    import spectral_fast
end = time.perf_counter()
print(json.dumps([middle - start, end - start]))
"""


@dataclass(frozen=True)
class ImportTime:
    """Seconds. alone: importing torch in its interpreters; torch, both: up to each point of the others."""

    alone: list[float]
    torch: list[float]
    both: list[float]

    @property
    def beyond(self) -> Spread:
        """From the end of torch's import to the end of ours."""
        return spread([both - torch for both, torch in zip(self.both, self.torch, strict=True)])

    @property
    def difference(self) -> Spread:
        """Of the totals of the two interpreters of a pair."""
        return spread([both - alone for both, alone in zip(self.both, self.alone, strict=True)])

    @property
    def failed(self) -> bool:
        return self.beyond.median > LIMIT


def measure_import(pairs: int) -> ImportTime:
    """Time pairs of fresh interpreters; one more before them writes the bytecode.

    Raises:
        subprocess.CalledProcessError: an import fails.
    """
    _sample("both")
    found = ImportTime([], [], [])
    for _ in range(pairs):
        found.alone.append(_sample("torch")[0])
        torch, both = _sample("both")
        found.torch.append(torch)
        found.both.append(both)
    return found


def _sample(imports: str) -> tuple[float, float]:
    # Without the bytecode each import would compile all sources again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, imports],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    torch, total = json.loads(done.stdout)
    return torch, total


def import_text(found: ImportTime) -> str:
    """Two lines: medians, with quartiles in brackets."""
    torch = spread([*found.alone, *found.torch])
    return (
        f"import spectral_fast: {_milliseconds(found.beyond)} after torch's {_milliseconds(torch)}, "
        f"{'above' if found.failed else 'within'} {LIMIT * 1e3:g} ms\n"
        f"difference between whole interpreters: {_milliseconds(found.difference)}, {len(found.both)} pairs"
    )


def _milliseconds(found: Spread) -> str:
    return f"{found.median * 1e3:.1f} ms ({found.q1 * 1e3:.1f} to {found.q3 * 1e3:.1f})"


def import_document(found: ImportTime, facts: dict[str, Any]) -> dict[str, Any]:
    """Every sample and what it depends on."""
    figures = {"beyond": asdict(found.beyond), "difference": asdict(found.difference), "limit": LIMIT}
    return {**facts, "seconds": asdict(found), **figures, "failed": found.failed}


def add(commands: Any) -> None:
    """Add the command to the subparsers of ``python -m benchmarks``."""
    parser = command_line.add_command(
        commands,
        "import-time",
        _run,
        help="what `import spectral_fast` takes beyond `import torch`",
        description="Time both imports in fresh interpreters, alternating. Exit code 1: above 50 ms.",
        exit_codes=None,
    )
    option = parser.add_argument
    option(
        "--pairs", type=at_least(LEAST_PAIRS), default=LEAST_PAIRS, metavar="N", help="of interpreters (15)"
    )
    option("--json", type=Path, metavar="FILE", help="write every sample")


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    found = measure_import(arguments.pairs)
    if arguments.json is not None:
        write_json(arguments.json, import_document(found, command_line.facts(arguments)))
    print(import_text(found))
    return EXIT_FAILED if found.failed else EXIT_OK
