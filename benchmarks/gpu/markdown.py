"""The GPU report as markdown, from its data alone."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import digits, markdown_table

Data = Mapping[str, Any]

_METHOD = """\
Gate first: the values of the first and the last matrix of a stack are checked, value by value, against
float64 on the CPU (float64 against LAPACK in the same precision, a weaker gate), and those of all for
order, sign and norm; no time without it. Then every repeat takes one sample of each method between two CUDA
events, in rotated order. Times are of one matrix: medians with quartiles. Libraries loop over a batch, so
one that takes long is timed on the first k matrices (column "timed"). × ours: its time over ours in the
same repeat, above 1 where ours is faster. error: the largest, in eps σ₁; ours with its bound. memory: the
most that torch's allocator held besides the input."""


def markdown(data: Data, pictures: Mapping[str, str]) -> str:
    """pictures: file names by title, in the order they appear."""
    cases = data["cases"]
    sections = [
        f"# spectral_fast on {data['gpu']}",
        f"{data['date_utc']}, {data['seconds']:.0f} s. **{_verdict(data)}**",
        "## Machine\n\n" + _machine(data),
        "## Tests\n\n" + _tests(data.get("tests")),
        "## First use\n\n" + _first_use(data.get("first_use")),
        "## A look at GPT-2 124M\n\n" + _look(data.get("look")),
        "## Singular values\n\n" + _METHOD,
        *(f"### {dtype}\n\n{_summary(rows)}\n\n{_cases(rows)}" for dtype, rows in _by_dtype(cases).items()),
        "## Pictures\n\n" + "\n\n".join(f"![{title}]({file})" for title, file in pictures.items()),
        "## Kernel by kernel\n\n" + _stages(data.get("stages")),
        "## Not measured\n\n" + _not_measured(cases),
        "## Again\n\n`python -m benchmarks gpu-report --out FOLDER`; every sample is in report.json.",
    ]
    return "\n\n".join(sections) + "\n"


def _verdict(data: Data) -> str:
    if data["status"] != "ok":
        return f"Not all is well: {data['status']}"
    measured = [row for row in data["cases"] if row["methods"]]
    if all(row["backend"] == "reference" for row in measured):
        return "Ours is torch.linalg itself on this device: nothing of ours was timed"
    return f"All tests passed, and all of the {len(measured)} stacks measured passed the accuracy gate."


def _machine(data: Data) -> str:
    machine, versions = data["machine"], data["versions"]
    kernels = data["capabilities"]["cuda"]
    rows = [
        ("GPU", data["gpu"]),
        (
            "costs predicted for",
            data["chip"]["name"] if data["chip"] else "none: the chip is not in the table",
        ),
        *((f"before: {name}", value) for name, value in data["state_before"].items()),
        *((f"after: {name}", value) for name, value in data["state_after"].items() if _moves(name)),
        *((f"torch.mm, {dtype}", f"{rate / 1e12:.1f} TF/s") for dtype, rate in data["gemm"].items()),
        ("CPU", f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"),
        *((name, str(value)) for name, value in versions.items()),
        ("kernels of ours", ", ".join(kernels["kernels"]) or f"none: {kernels['no_kernels']}"),
    ]
    return markdown_table(("", ""), [(name, value) for name, value in rows], left=2)


def _moves(name: str) -> bool:
    return name.startswith(("clocks", "power.draw", "temperature", "pstate", "error"))


def _tests(tests: Data | None) -> str:
    if tests is None:
        return "Not run."
    line = f"`pytest -m gpu`: **{tests['status']}**"
    if "tests" in tests:
        counts = ", ".join(f"{tests[name]} {name}" for name in ("passed", "failures", "errors", "skipped"))
        line += f" — {counts}, {tests['seconds']:.0f} s"
    if "output" in tests:
        line += f"\n\n```\n{tests['output'].strip()}\n```"
    return line


def _first_use(found: Data | None) -> str:
    if found is None:
        return "Not measured."
    if "status" in found:
        return str(found["status"])
    rows = []
    for when, text in (("cold", "empty caches"), ("warm", "caches of an earlier process")):
        one = found[when]
        first = sum(call["first"] for call in one["calls"])
        second = sum(call["second"] for call in one["calls"])
        rows.append([text, *map(_seconds, (one["import"], one["device"], first, second, first - second))])
    headings = (
        "a new process with",
        "import",
        "device",
        "first calls",
        "second calls",
        "first less second",
    )
    shapes = {"×".join(map(str, call["shape"])) for call in found["cold"]["calls"]}
    return f"`spectral_stats` of {', '.join(sorted(shapes))}, float32 and float64.\n\n" + markdown_table(
        headings, rows
    )


def _look(look: Data | None) -> str:
    if look is None:
        return "Not measured."
    if "ways" not in look or look["status"] != "ok":
        return str(look["status"])
    rows = []
    for way in look["ways"]:
        if way["spread"] is None:
            rows.append([way["name"], "", "", "", "", way["status"]])
            continue
        rows.append(
            [way["name"], str(way["calls"]), *_times(way["spread"]), _mebibytes(way["peak_bytes"]), ""]
        )
    predicted = (
        "" if look["predicted"] is None else f" Predicted, a call a shape: {_seconds(look['predicted'])}."
    )
    alpha = f" α is off by {look['alpha_error']:.1e}, relative, at most, from that of values in float64."
    text = f"{look['matrices']} matrices, random weights, float32: values and all statistics, α included."
    headings = ("", "calls", "median", "quartiles", "memory", "note")
    return text + alpha + predicted + "\n\n" + markdown_table(headings, rows)


def _by_dtype(cases: Sequence[Data]) -> dict[str, list[Data]]:
    found: dict[str, list[Data]] = defaultdict(list)
    for row in cases:
        found[row["dtype"]].append(row)
    return dict(found)


def _summary(rows: Sequence[Data]) -> str:
    """How much longer than ours each method takes, over the stacks that have both."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for method in row["methods"]:
            if method["ratio"] is not None:
                ratios[method["name"]].append(method["ratio"]["median"])
    if not ratios:
        return "Nothing was compared."
    found = [
        [f"`{name}`", str(len(each)), *(digits(f(each)) for f in (statistics.geometric_mean, min, max))]
        for name, each in ratios.items()
    ]
    return markdown_table(("× ours", "stacks", "geometric mean", "least", "most"), found)


def _cases(rows: Sequence[Data]) -> str:
    headings = (
        "stack",
        "method",
        "timed",
        "a matrix",
        "quartiles",
        "× ours",
        "quartiles",
        "error",
        "memory",
        "note",
    )
    found = []
    for row in rows:
        if row["status"].startswith("not measured"):
            continue
        name = case_name(row)
        if not row["methods"]:
            found.append([name, "ours", *[""] * 7, row["status"]])
        for place, method in enumerate(row["methods"]):
            found.append(
                [name if place == 0 else "", f"`{method['name']}`", *_method(row, method, place == 0)]
            )
    return markdown_table(headings, found, left=2)


def _method(row: Data, method: Data, is_ours: bool) -> list[str]:
    if method["spread"] is None:
        return [*[""] * 7, method["status"]]
    ratio = method["ratio"]
    notes = []
    if is_ours:
        if row["backend"] == "reference":
            notes.append("ours is torch here: no ratio")
        if row["gate"]["weaker"]:
            notes.append("weaker gate")
        if row["predicted_seconds"] is not None:
            notes.append(f"predicted {_seconds(row['predicted_seconds'] / row['matrices'])}")
    error = "" if method["error"] is None else f"{method['error']:.2f}"
    if is_ours:
        error = f"{row['gate']['error']:.2f} of {row['gate']['allowed']:.2g}"
    return [
        f"{method['matrices']} of {row['matrices']}",
        *_times(method["spread"]),
        *(
            ("", "")
            if ratio is None
            else (digits(ratio["median"]), f"{digits(ratio['q1'])}–{digits(ratio['q3'])}")
        ),
        error,
        _mebibytes(method["peak_bytes"]),
        ", ".join(notes),
    ]


def _stages(stages: Any) -> str:
    if not isinstance(stages, list):
        return "Not measured." if stages is None else str(stages["status"])
    headings = ("stage", "kernel", "launches", "measured", "share", "predicted", "bound, predicted")
    parts = [
        "Kernels of one `spectral_stats`, float32, by the file they are in, beside the cost model's figures."
    ]
    for row in stages:
        name = "{count}×{m}×{n}".format(**row["stack"])
        if row["status"] != "ok":
            parts.append(f"**{name}**: {row['status']}")
            continue
        inside = sum(kernel["seconds"] for kernel in row["kernels"])
        parts.append(
            f"**{name}**: {_seconds(row['whole'])} between two events, {_seconds(inside)} in kernels"
        )
        found = [
            [
                *(
                    kernel["stage"],
                    f"`{kernel['kernel']}`",
                    str(kernel["launches"]),
                    _seconds(kernel["seconds"]),
                ),
                *(
                    f"{100 * kernel['seconds'] / inside:.1f} %",
                    _optional(kernel["predicted"]),
                    kernel["bound"],
                ),
            ]
            for kernel in row["kernels"]
        ]
        parts.append(markdown_table(headings, found, left=2))
    return "\n\n".join(parts)


def _not_measured(cases: Sequence[Data]) -> str:
    lines = [
        f"- {case_name(row)}, {row['dtype']}: {row['status']}"
        for row in cases
        if row["status"].startswith("not measured")
    ]
    return (
        "\n".join(lines) if lines else "Every stack was measured; methods that were not say so in their row."
    )


def case_name(row: Data) -> str:
    return f"{row['matrices']}×{row['m']}×{row['n']}"


def _times(spread: Data) -> tuple[str, str]:
    return _seconds(spread["median"]), f"{_seconds(spread['q1'])}–{_seconds(spread['q3'])}"


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{digits(seconds * factor)} {unit}"
    return f"{digits(seconds * 1e6)} µs"


def _optional(seconds: float | None) -> str:
    return "" if seconds is None else _seconds(seconds)


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{digits(size / 2**20)} MiB"
