"""``python -m tests.reliability``: arguments and reports of each command; 1 where something failed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.reliability.chunks import run_chunks
from tests.reliability.fuzz import CHUNK, check, check_chunk
from tests.reliability.matrices import plan


def fuzz(arguments: argparse.Namespace) -> int:
    if arguments.case:
        seed, chunk, index = map(int, arguments.case.split("-"))
        case = plan(seed, chunk, CHUNK)[index]
        print(case)
        failed = 0
        for matrix, group, ratio, problem in check(case):
            print(f"matrix {matrix} ({case.spectra[matrix]}, {group}): {ratio:.3f} c eps sigma_1 {problem}")
            failed += bool(problem)
        return int(failed > 0)
    chunks = -(-arguments.matrices // CHUNK)
    folder = arguments.json.with_suffix(".chunks")
    results = run_chunks(check_chunk, arguments.seed, chunks, folder, arguments.jobs)
    groups: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, part in result["groups"].items():
            group = groups.setdefault(name, {"matrices": 0, "largest": 0.0, "beyond": 0})
            group["matrices"] += part["matrices"]
            group["beyond"] += part["beyond"]
            group["largest"] = max(group["largest"], part["largest"])
    failures = [failure for result in results for failure in result["failures"]]
    count = sum(result["matrices"] for result in results)
    arguments.json.write_text(
        json.dumps({"matrices": count, "groups": groups, "failures": failures}, indent=1)
    )
    print("| | matrices | largest error / (c eps sigma_1) | above c eps sigma_1 |\n|---|---|---|---|")
    for name, group in sorted(groups.items()):
        print(f"| {name} | {group['matrices']} | {group['largest']:.2f} | {group['beyond']} |")
    for failure in failures:
        print(f"--case {failure['case']}: {failure['problem']} ({failure})")
    print(f"{count} matrices, {len(failures)} failures")
    return int(bool(failures))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    commands = parser.add_subparsers(required=True)

    one = commands.add_parser(
        "fuzz", help="random matrices against the oracle; goes on where it was interrupted"
    )
    one.add_argument("--matrices", type=int, default=100_000)
    one.add_argument("--jobs", type=int, default=2)
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--json", type=Path, default=Path("fuzz.json"))
    one.add_argument("--case", metavar="SEED-CHUNK-INDEX", help="one case again")
    one.set_defaults(run=fuzz)

    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
