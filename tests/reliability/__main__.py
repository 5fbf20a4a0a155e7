"""``python -m tests.reliability``: a command for each kind of evidence; exit code 1: it failed."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.reliability import checkpoints, fuzz, lapack
from tests.reliability.chunks import run_chunks
from tests.reliability.kills import kill_often
from tests.reliability.matrices import plan
from tests.reliability.soak import soak
from tests.reliability.stress import stress


def run_fuzz(arguments: argparse.Namespace) -> int:
    if arguments.case:
        seed, chunk, index = map(int, arguments.case.split("-"))
        case = plan(seed, chunk, fuzz.CHUNK)[index]
        print(case)
        failed = 0
        for matrix, group, ratio, problem in fuzz.check(case):
            print(f"matrix {matrix} ({case.spectra[matrix]}, {group}): {ratio:.3f} c eps sigma_1 {problem}")
            failed += bool(problem)
        return int(failed > 0)
    if arguments.summary:
        results = [json.loads(file.read_text()) for file in sorted(_folder(arguments).glob("*.json"))]
    else:
        chunks = -(-arguments.matrices // fuzz.CHUNK)
        results = run_chunks(fuzz.check_chunk, arguments.seed, chunks, _folder(arguments), arguments.jobs)
    groups: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, part in result["groups"].items():
            group = groups.setdefault(name, {"matrices": 0, "largest": 0.0, "beyond": 0})
            group["matrices"] += part["matrices"]
            group["beyond"] += part["beyond"]
            group["largest"] = max(group["largest"], part["largest"])
    failures = [failure for result in results for failure in result["failures"]]
    count = sum(group["matrices"] for group in groups.values())
    arguments.json.write_text(
        json.dumps({"matrices": count, "groups": groups, "failures": failures}, indent=1)
    )
    print("| | matrices | largest error / (c eps sigma_1) | above c eps sigma_1 |\n|---|---|---|---|")
    for name, group in sorted(groups.items()):
        print(f"| {name} | {group['matrices']} | {group['largest']:.2f} | {group['beyond']} |")
    for failure in failures:
        about = ", ".join(
            f"{key} {failure[key]}" for key in ("rows", "cols", "batch", "dtype", "isa", "spectrum")
        )
        print(f"--case {failure['case']} matrix {failure['matrix']}: {failure['problem']} ({about})")
    print(f"{count} matrices, {len(failures)} failures")
    return int(bool(failures))


def _folder(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.json.with_suffix(".chunks")
    return folder


def run_lapack(arguments: argparse.Namespace) -> int:
    largest: dict[tuple[str, str], dict[str, float]] = {}
    failures, count = [], 0
    for one in lapack.check(lapack.FULL):
        count += 1
        column = f"{str(one.dtype).removeprefix('torch.')} {one.driver or 'bidiag'}"
        row = largest.setdefault((one.kind, ""), {})
        row[column] = max(row.get(column, 0.0), one.ratio)
        isa = largest.setdefault(("all types", one.isa), {})
        isa[column] = max(isa.get(column, 0.0), one.ratio)
        if one.problem:
            failures.append(f"{one}")
    columns = sorted({column for row in largest.values() for column in row})
    print("| | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for (kind, isa_name), row in sorted(largest.items(), key=lambda one: one[0][0] == "all types"):
        cells = " | ".join(f"{row[column]:.2g}" if column in row else "" for column in columns)
        print(f"| {kind} {isa_name} | {cells} |")
    print("\n".join([*failures, f"{count} results, {len(failures)} failures"]))
    return int(bool(failures))


def run_soak(arguments: argparse.Namespace) -> int:
    found = soak(arguments.calls)
    for name, (slope, width) in (("resident", found.resident_slope), ("malloc's", found.allocated_slope)):
        print(f"{name} memory: {slope:+.4f} +- {width:.4f} bytes a call (95 %)")
    grown = found.last.resident - found.first.resident
    print(f"{found.calls} calls; resident {found.first.resident >> 20} MiB, then {grown / 2**20:+.2f} MiB")
    return int(not found.flat)


def run_stress(arguments: argparse.Namespace) -> int:
    found = stress(arguments.threads, arguments.processes, arguments.seconds, arguments.seed)
    print("\n".join([*found.problems, f"{found.calls} calls, {len(found.problems)} problems"]))
    return int(bool(found.problems))


def run_kill(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = kill_often(Path(folder) / "run", arguments.kills, arguments.seed, arguments.longest)
    summary = (
        f"{found.kills} kills, {found.without_looks} of them before the first look; "
        f"{found.acknowledged} rows acknowledged, {found.lost} lost"
    )
    print("\n".join([*found.problems, summary]))
    return int(bool(found.problems))


def run_checkpoints(arguments: argparse.Namespace) -> int:
    if arguments.case:
        seed, chunk, index = map(int, arguments.case.split("-"))
        code, problem = checkpoints.check(seed, chunk, index)
        print(f"exit code {code} {problem}")
        return int(bool(problem))
    chunks = -(-arguments.mutants // checkpoints.CHUNK)
    folder = arguments.json.with_suffix(".chunks")
    results = run_chunks(checkpoints.check_chunk, arguments.seed, chunks, folder, arguments.jobs)
    kinds: dict[str, list[int]] = {}
    for result in results:
        for kind, counts in result["kinds"].items():
            kinds[kind] = [a + b for a, b in zip(kinds.get(kind, [0, 0]), counts, strict=True)]
    failures = [failure for result in results for failure in result["failures"]]
    for index in range(arguments.processes):  # some of them by the command itself
        code, problem = checkpoints.check(arguments.seed, 0, index, by_process=True)
        if problem:
            failures.append({"case": f"{arguments.seed}-0-{index}", "kind": "by process", "problem": problem})
    arguments.json.write_text(json.dumps({"kinds": kinds, "failures": failures}, indent=1))
    print("| | refused | analysed |\n|---|---|---|")
    for kind, (refused, analysed) in kinds.items():
        print(f"| {kind} | {refused} | {analysed} |")
    for failure in failures:
        print(f"--case {failure['case']} ({failure['kind']}): {failure['problem']}")
    slowest = max(result["slowest"] for result in results)
    print(f"{sum(map(sum, kinds.values()))} mutants, {len(failures)} failures, slowest {slowest:.1f} s")
    return int(bool(failures))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(run=run)
        return one

    one = command("fuzz", run_fuzz, "random matrices against the oracle; goes on where it was interrupted")
    one.add_argument("--matrices", type=int, default=100_000)
    one.add_argument("--json", type=Path, default=Path("fuzz.json"), help="results; chunks go beside it")
    one.add_argument("--case", metavar="SEED-CHUNK-INDEX", help="one case again")
    one.add_argument("--summary", action="store_true", help="only what was computed so far")
    _jobs_and_seed(one)

    command("lapack", run_lapack, "the matrix types of LAPACK's own tests")

    one = command("soak", run_soak, "many calls in one process: what memory they leave behind")
    one.add_argument("--calls", type=int, default=1_000_000)

    one = command("stress", run_stress, "many threads in many processes: the same bits")
    one.add_argument("--threads", type=int, default=16)
    one.add_argument("--processes", type=int, default=4)
    one.add_argument("--seconds", type=float, default=60)
    one.add_argument("--seed", type=int, default=1)

    one = command("kill", run_kill, "a monitored run, killed again and again: nothing is lost")
    one.add_argument("--kills", type=int, default=50)
    one.add_argument("--longest", type=float, default=0.5, help="seconds of training before a kill, at most")
    one.add_argument("--seed", type=int, default=1)

    one = command("checkpoints", run_checkpoints, "malformed checkpoints through `spectral-fast analyze`")
    one.add_argument("--mutants", type=int, default=10_000)
    one.add_argument("--processes", type=int, default=60, help="of them once more in processes of their own")
    one.add_argument("--json", type=Path, default=Path("checkpoints.json"))
    one.add_argument("--case", metavar="SEED-CHUNK-INDEX", help="one mutant again")
    _jobs_and_seed(one)

    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _jobs_and_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)


if __name__ == "__main__":
    sys.exit(main())
