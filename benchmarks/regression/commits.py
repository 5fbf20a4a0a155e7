"""``python -m benchmarks base REF``: the working tree against another commit.

The commit is checked out into a worktree of its own and built there. Both packages run in processes of
their own (:mod:`benchmarks.regression.worker`) with the same operations, inputs and threads; samples are
taken in turn, A B B A, so that what slows the machine for a second slows both. Ratios are of a pair, base
over ours.

Of the commit, ``setup.py`` and ``spectral_fast`` are used, and nothing of its ``benchmarks``: worker and
operations are the working tree's for both, so modules here may be moved freely.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.budget import INTERRUPTED
from benchmarks.machine import ROOT
from benchmarks.measure import GATE_FAILED, NOT_MEASURED
from benchmarks.regression.watched import Operation
from benchmarks.report import SCHEMA_VERSION, digits, time_cells
from benchmarks.timing import Spread, rotated, spread

WORKER = Path(__file__).resolve().with_name("worker.py")

# As many pairs as take this long, an even number within the limits: each side is first in half of them.
PAIR_SECONDS = 1.5
PAIRS_LEAST, PAIRS_MOST = 8, 40

# Below this a difference is what another layout of the same code in memory makes.
MARGIN = 0.05


class CommitError(Exception):
    """The other commit cannot be measured; the message says why and what to do."""


class WorkerError(Exception):
    """A worker's package cannot be used, or its process ended."""


def git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(repository), *arguments], capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise CommitError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def resolve(repository: Path, ref: str) -> str:
    """The commit that REF names."""
    try:
        return git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    except CommitError:
        raise CommitError(
            f"{ref!r} names no commit here: `git log --oneline` lists them, `git fetch` brings others"
        ) from None


@contextlib.contextmanager
def built_worktree(repository: Path, commit: str, progress: Callable[[str], None]) -> Iterator[Path]:
    """The commit in a temporary folder with its own extension; gone afterwards, however it ends."""
    with tempfile.TemporaryDirectory(prefix="spectral_fast-base-") as folder:
        tree = Path(folder, "tree")
        git(repository, "worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            progress(f"building {commit[:12]}")
            done = subprocess.run(
                [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
                cwd=tree,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
            )
            if done.returncode:
                last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
                raise CommitError(
                    f"building {commit[:12]} failed; it needs a C++17 compiler, setuptools and pybind11:\n"
                    f"{last}"
                )
            yield tree
        finally:
            git(repository, "worktree", "remove", "--force", str(tree))


def require_built(tree: Path) -> None:
    """Raise CommitError where the extension of the working tree is missing or older than its sources."""
    how = "run `python setup.py build_ext --inplace`"
    built = max((file.stat().st_mtime for file in tree.glob("spectral_fast/_cpu*.so")), default=None)
    if built is None:
        raise CommitError(f"the working tree has no extension: {how}")
    sources = [tree / "setup.py", *tree.glob("csrc/*.h"), *tree.glob("csrc/cpu/*")]
    newer = [file for file in sources if file.stat().st_mtime > built]
    if newer:
        name = newer[0].relative_to(tree)
        raise CommitError(f"the extension of the working tree is older than {name}: {how}")


class Worker:
    """The package of a tree in a process of its own. Raises WorkerError where it cannot be imported."""

    def __init__(self, name: str, tree: Path, threads: int) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(tree), str(ROOT), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            cwd=tree,
        )
        try:
            hello = self._answer()
            if "error" in hello:
                raise WorkerError(f"{name}: the package cannot be used: {hello['error']}")
        except BaseException:
            self.close()
            raise

    def prepare(self, operation: Operation) -> dict[str, Any]:
        """Inputs, check of the values, warm-up: seconds of a sample and calls in it, or what is wrong."""
        dtype = str(operation.dtype).removeprefix("torch.")
        return self._ask(prepare={"kind": operation.kind, "shape": operation.shape, "dtype": dtype})

    def sample(self, calls: int) -> float:
        """Seconds of a call, in a sample of as many."""
        answer = self._ask(sample=calls)
        if "failed" in answer:
            raise WorkerError(f"{self.name}: {answer['failed']}")
        return float(answer["seconds"])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer says that it ended
            print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise WorkerError(f"{self.name}: its process ended with {code}; its messages are above")
        found: dict[str, Any] = json.loads(line)
        return found


@dataclass
class CommitRow:
    """One operation. ``status`` is "ok", or says why there are no times.

    ``ours`` and ``base``: seconds of a call, position i of both is pair i.
    """

    operation: Operation
    status: str = "ok"
    failed: bool = False  # ours, or a process ended: what the base does wrong is no fault of the working tree
    ours: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> Spread | None:
        """The base's time over ours: above 1 where ours is faster."""
        if not self.ours:
            return None
        return spread([a / b for a, b in zip(self.base, self.ours, strict=True)])

    @property
    def verdict(self) -> str:
        """Faster or slower where three quarters of the pairs say so by more than the margin."""
        ratio = self.ratio
        if ratio is None:
            return ""
        if ratio.q3 < 1 / (1 + MARGIN):
            return "slower"
        return "faster" if ratio.q1 > 1 + MARGIN else ""


def compare_trees(
    ours: Path,
    base: Path,
    operations: Sequence[Operation],
    threads: int,
    progress: Callable[[str], None],
) -> list[CommitRow]:
    """A row for each operation, of the packages in both trees; those left after Ctrl-C say so.

    Raises CommitError where the package of one of them cannot be used.
    """
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, tree in (("base", base), ("ours", ours)):
            try:
                workers[name] = Worker(name, tree, threads)
            except WorkerError as error:
                raise CommitError(str(error)) from None
            stack.callback(workers[name].close)
        return list(_rows(workers["ours"], workers["base"], operations, progress))


def _rows(
    ours: Worker, base: Worker, operations: Sequence[Operation], progress: Callable[[str], None]
) -> Iterator[CommitRow]:
    interrupted = False
    for place, operation in enumerate(operations):
        row = CommitRow(operation)
        if not interrupted:
            progress(f"{place + 1}/{len(operations)} {operation.name}")
            try:
                _compare(row, ours, base)
            except KeyboardInterrupt:
                interrupted = True
            except WorkerError as error:
                row = CommitRow(operation, f"failed: {error}", failed=True)
        if interrupted:
            row = CommitRow(operation, f"{NOT_MEASURED}: {INTERRUPTED}")
        yield row


def _compare(row: CommitRow, ours: Worker, base: Worker) -> None:
    found = [worker.prepare(row.operation) for worker in (ours, base)]
    for worker, answer in zip((ours, base), found, strict=True):
        if not (status := _trouble(answer)):
            continue
        row.failed = worker is ours and "missing" not in answer
        row.status = f"{worker.name}: {status}"
        return
    per_pair = sum(answer["seconds"] for answer in found)
    # The same number: the first call after a rest finds cold caches, and the machine may have interrupted the
    # warm-up of one, which then asks for fewer.
    calls = max(answer["calls"] for answer in found)
    pairs = min(max(2 * math.ceil(PAIR_SECONDS / per_pair / 2), PAIRS_LEAST), PAIRS_MOST)
    for pair in range(pairs):
        for worker, samples in rotated([(ours, row.ours), (base, row.base)], pair):
            samples.append(worker.sample(calls))


def _trouble(answer: dict[str, Any]) -> str:
    if "missing" in answer:
        return f"{NOT_MEASURED}: has no {', '.join(answer['missing'])}"
    if "wrong" in answer:
        return f"{GATE_FAILED}: {answer['wrong']}"
    return str(answer.get("failed", ""))


def commits_document(rows: Sequence[CommitRow], facts: dict[str, Any]) -> dict[str, Any]:
    """The whole run as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "rows": [
            {
                "operation": row.operation.kind,
                "case": row.operation.case,
                "status": row.status,
                "seconds": row.base,
                "our_seconds": row.ours,
                "ratio": row.ratio and dataclasses.asdict(row.ratio),
                "verdict": row.verdict,
            }
            for row in rows
        ],
    }


def print_commits(rows: Sequence[CommitRow], commit: str, console: Console) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("operation", "case"):
        table.add_column(heading, no_wrap=True)
    for heading in (f"base {commit[:12]}", "quartiles", "ours", "quartiles", "base / ours", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        head, ratio = (row.operation.kind, row.operation.case), row.ratio
        if ratio is None:
            table.add_row(*head, *[""] * 6, row.status)
            continue
        times = (*time_cells(spread(row.base)), *time_cells(spread(row.ours)))
        quartiles = f"{digits(ratio.q1)}–{digits(ratio.q3)}"
        table.add_row(*head, *times, digits(ratio.median), quartiles, row.verdict)
    console.print(table)
    judged = [row.verdict for row in rows if row.ratio is not None]
    console.print(
        f"{len(judged)} of {len(rows)} operations measured in both: {judged.count('slower')} slower, "
        f"{judged.count('faster')} faster, by more than {MARGIN:.0%} in three quarters of the pairs",
        markup=False,
        highlight=False,
    )
