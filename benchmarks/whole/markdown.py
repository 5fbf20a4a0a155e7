"""The whole report as markdown, from its data alone."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.report import markdown_table
from benchmarks.whole.tables import TABLES, Data, geometric_mean, left_out

_METHOD = """\
A gate comes before every time: the values are checked on the very input that is timed. Then each repeat
takes one sample of every method, in rotated order. Times are medians of a call; a ratio is formed in each
repeat, and its median is given with its quartiles: above 1 ours is faster. err: the largest error of a value
in eps σ₁, against higher precision (empty where the oracle is no better than what it judges). torch has one
thread and all, and the better of both is compared. Every sample is in bench.json."""

_NOTES = {
    "minilm": "gram: eigvalsh of the float64 Gram matrix. NumPy and SciPy choose their threads; NumPy "
    "computes float32 in float64.",
    "float64": "The oracle above 64 values is LAPACK in the same precision, a weaker gate: no errors given.",
    "conditioning": "Each cell: the largest error in eps σ₁ · the relative error of the smallest value. "
    "asked: the condition number of U diag(s) Vᵀ before it was rounded to the dtype; stored: after.",
    "stages": "One matrix a call. bound: multiply-adds or divisions out of registers, or a torch copy. The "
    "share of torch.mm is by 4mn² − 4/3 n³ operations for the whole.",
    "memory": "The most that one call had resident beyond what was there before it, in a fresh process.",
    "fit": "Times of one spectrum, on one thread. powerlawrs' distance is two-sided: its xmin may differ.",
    "statistics": "Shares of the time of svdvals, on one thread.",
    "operations": "One thread.",
    "leading": "torch.svd_lowrank computes the top 16 only: no peer of svdvals, and its error is beside it.",
    "tail": "One thread; errors are rms over four sets of probes, of the worst of six spectra.",
    "tracking": "Relative errors against all singular values at random steps.",
    "monitor": "Two trainings, equal to the bit but for the monitor, in alternating stretches.",
}


def markdown(data: Data, plots: Mapping[str, str]) -> str:
    """plots: file names by title, in the order they appear."""
    parts = [
        "# spectral_fast: accuracy and speed",
        f"{data['date_utc']}, {data['seconds']:.0f} s. **{data['status']}**",
        "## Machine\n\n" + _machine(data),
        "## Method\n\n" + _METHOD,
        "## Plots\n\n" + "\n\n".join(f"![{title}]({file})" for title, file in plots.items()),
    ]
    for name, section in data["sections"].items():
        parts.append(f"## {section['title']}")
        head = f"`--sections {name}`, {section['seconds']:.0f} s."
        if mean := geometric_mean(section):
            head += f" torch / ours: geometric mean {mean}."
        parts.append(" ".join(filter(None, (head, _NOTES.get(name, "")))))
        tables = [make(section) for make in TABLES[name]] if _measured(section) else []
        parts += tables
        if missing := left_out(section):
            parts.append("Without times:\n\n" + "\n".join(f"- {line}" for line in missing))
    parts.append("## Again\n\n`python -m benchmarks all`; `--sections NAME` measures one section of it.")
    return "\n\n".join(parts) + "\n"


def _measured(section: Data) -> bool:
    rows = section.get("rows")
    return section["status"] == "ok" and (rows is None or any(row["status"] == "ok" for row in rows))


def _machine(data: Data) -> str:
    machine, versions = data["machine"], data["versions"]
    rows = [
        ("CPU", f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"),
        ("instruction set", str(data["capabilities"]["cpu"]["isa"])),
        ("threads", str(data["threads"])),
        *((f"torch.mm, {dtype}", f"{rate / 1e9:.0f} Gflop/s") for dtype, rate in data["gemm"].items()),
        ("GPU", data["gpu"]),
        *((name, str(value)) for name, value in versions.items() if value is not None),
        *((f"peer {name}", status) for name, status in data["peers"].items()),
    ]
    return markdown_table(("", ""), rows, left=2)
