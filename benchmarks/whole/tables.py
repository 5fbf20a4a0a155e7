"""The tables of a whole report, from its data alone: for its markdown and for README."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.report import digits, markdown_table

Data = Mapping[str, Any]


def duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{digits(seconds * factor)} {unit}"
    return f"{digits(seconds * 1e6)} µs"


def median(spread: Data | None) -> str:
    return "" if spread is None else duration(spread["median"])


def times(ratio: Data | None) -> str:
    """A ratio with its quartiles."""
    if ratio is None:
        return ""
    return f"{digits(ratio['median'])}× ({digits(ratio['q1'])}–{digits(ratio['q3'])})"


def shape(row: Data) -> str:
    matrix = f"{row['m']}×{row['n']}"
    if row.get("layers"):
        return f"{row['matrices']} of {row['layers']} × {matrix}"
    return f"{row['matrices']} × {matrix}" if row.get("matrices", 1) > 1 else matrix


def rows_of(section: Data | None) -> list[Data]:
    """The measured rows."""
    found = [] if section is None else section.get("rows", [])
    return [row for row in found if row["status"] == "ok"]


def error(row: Data, method: Data) -> str:
    if method["method"] == "ours":
        gate = row["gate"]["error"]
        return "" if gate is None else f"{gate:.1f}"
    return "" if method["error"] is None else f"{method['error']:.1f}"


def methods_of(row: Data, name: str) -> list[Data]:
    return [one for one in row["measurements"] if one["method"] == name and one["spread"] is not None]


def torch_used(row: Data) -> Data | None:
    """torch on the number of threads that is better for it, which is what ours is compared with."""
    return min(methods_of(row, "torch"), key=lambda one: one["spread"]["median"], default=None)


def svdvals_table(section: Data) -> str:
    """A line a stack: times of every method, ratios to ours, errors in eps sigma_1."""
    rows = rows_of(section)
    others = list(
        dict.fromkeys(
            one["method"]
            for row in rows
            for one in row["measurements"]
            if one["method"] not in ("ours", "torch") and one["spread"] is not None
        )
    )
    calls = len({row["calls"] for row in rows}) > 1

    def line(row: Data) -> list[str]:
        ours, torch = methods_of(row, "ours")[0], torch_used(row)
        cells = [shape(row), ", ".join(row["roles"]) or row["data"], *([row["calls"]] if calls else [])]
        cells += [median(ours["spread"]), error(row, ours)]
        if torch is None:
            cells += ["", "", ""]
        else:
            cells += [
                f"{median(torch['spread'])} ({torch['threads']})",
                times(torch["ratio"]),
                error(row, torch),
            ]
        for name in others:
            best = min(methods_of(row, name), key=lambda one: one["spread"]["median"], default=None)
            ratio = best and best["ratio"] and f"{digits(best['ratio']['median'])}×"
            cells += ["", ""] if best is None else [ratio or "", error(row, best)]
        return cells

    headings = ["", "", *(["calls"] if calls else []), "ours", "err"]
    headings += ["torch (threads)", "torch / ours", "err"]
    for name in others:
        headings += [f"{name} / ours", "err"]
    return markdown_table(headings, [line(row) for row in rows], left=2)


def geometric_mean(section: Data | None) -> str:
    """Of torch's better time over ours."""
    found = section and section.get("summary")
    if not isinstance(found, Mapping) or found.get("geometric_mean") is None:
        return ""
    return f"{found['geometric_mean']:.1f}× over {found['compared']} of {found['rows']} rows"


def threads_table(section: Data) -> str:
    def lines() -> Iterable[list[str]]:
        for row in rows_of(section):
            for one in row["methods"]:
                same = times(one["over_ours"])
                over = f"{digits(one['our_one_thread_over_it']['median'])}×"
                yield [shape(row), one["method"], str(one["threads"]), median(one["spread"]), same, over]

    return markdown_table(
        ("", "", "threads", "median", "× ours, same threads", "ours on one thread over it"), lines(), left=2
    )


def conditioning_table(section: Data) -> str:
    rows = rows_of(section)
    names = [one["method"] for one in rows[0]["methods"]] if rows else []

    def line(row: Data) -> list[str]:
        cells = [row["dtype"], f"{row['asked']:.0e}", f"{row['stored']:.1e}"]
        return cells + [f"{one['error']:.2g} · {one['smallest']:.0e}" for one in row["methods"]]

    return markdown_table(("dtype", "asked", "stored", *names), [line(row) for row in rows])


def stages_table(section: Data) -> str:
    def lines() -> Iterable[list[str]]:
        for row in rows_of(section):
            share = row["gemm_share"]
            yield [shape(row), "whole", median(row["whole"]), "", "", f"{100 * share:.0f} %"]
            for stage in row["stages"]:
                gemm = stage["gemm_share"]
                yield [
                    "",
                    stage["name"],
                    median(stage["spread"]),
                    f"{100 * stage['share']:.0f} %",
                    f"{100 * stage['reached']:.0f} %",
                    "" if gemm is None else f"{100 * gemm:.0f} %",
                ]

    return markdown_table(
        ("", "stage", "median", "of the call", "of its bound", "of torch.mm"), lines(), left=2
    )


def memory_table(section: Data) -> str:
    rows = rows_of(section)
    names = [one["method"] for one in rows[0]["methods"]] if rows else []

    def line(row: Data) -> list[str]:
        cells = ["" if one["bytes"] is None else f"{one['bytes'] / 2**20:.1f} MiB" for one in row["methods"]]
        return [shape(row), f"{row['input_bytes'] / 2**20:.1f} MiB", *cells]

    return markdown_table(("", "input", *names), [line(row) for row in rows])


def fit_table(section: Data) -> str:
    rows = rows_of(section)
    peers = list(dict.fromkeys(one["peer"] for row in rows for one in row["comparisons"]))

    def line(row: Data) -> list[str]:
        found = {one["peer"]: one for one in row["comparisons"] if "ratio" in one}
        ours = next((one["our_spread"] for one in found.values()), None)
        count = row["spectra"]
        name = row["spectrum"] + (f", {count} in a call, each" if count > 1 else "")
        cells = [name, str(row["n"]), "" if ours is None else duration(ours["median"] / count)]
        for peer in peers:
            one = found.get(peer)
            note = next((c["status"].partition(":")[0] for c in row["comparisons"] if c["peer"] == peer), "")
            cells += (
                ["", note]
                if one is None
                else [duration(one["spread"]["median"] / count), times(one["ratio"])]
            )
        return cells

    headings = ["", "n", "ours"]
    for peer in peers:
        headings += [peer, "/ ours"]
    return markdown_table(headings, [line(row) for row in rows])


def share_table(section: Data) -> str:
    def share(row: Data, name: str) -> str:
        found = next((one["share"] for one in row["methods"] if one["method"] == name), None)
        return "" if found is None else f"{100 * found['median']:.1f} %"

    names = ("spectral_stats", "stats_from_svdvals", "plain torch")
    lines = [
        [shape(row), *(share(row, name) for name in names), times(row["plain_torch_over_ours"])]
        for row in rows_of(section)
    ]
    headings = ("", "spectral_stats adds", "stats_from_svdvals", "plain torch", "plain torch / ours")
    return markdown_table(headings, lines)


def goodness_table(section: Data) -> str:
    lines = []
    for row in rows_of(section):
        peer = row["extrapolated"]
        cells = [median(peer.get("spread")), times(peer.get("ratio"))] if peer["status"] == "ok" else ["", ""]
        head = f"{row['spectrum']}, n = {row['n']}, {row['samples']} samples, {row['threads']} threads"
        lines.append([head, median(row["ours"]["spread"]), *cells])
    return markdown_table(("", "goodness_of_fit", "WWFit, extrapolated", "/ ours"), lines)


def operations_table(section: Data) -> str:
    lines = [
        [row["operation"], row["peer"], median(row["our_spread"]), median(row["spread"]), times(row["ratio"])]
        for row in rows_of(section)
        if "ratio" in row
    ]
    return markdown_table(("", "against", "ours", "theirs", "/ ours"), lines, left=2)


def leading_table(section: Data) -> str:
    def lines() -> Iterable[list[str]]:
        for row in rows_of(section):
            for one in row["methods"]:
                if "spread" not in one:
                    yield [shape(row), one["method"], one["status"], "", ""]
                    continue
                over = times(one["over_ours"]) if not one["method"].startswith("svdvals") else ""
                yield [shape(row), one["method"], median(one["spread"]), over, f"{one['largest_error']:.1e}"]

    headings = ("", "", "median", "/ svdvals of ours", "largest relative error of the top 16")
    return markdown_table(headings, lines(), left=2)


def tail_table(section: Data) -> str:
    def line(row: Data) -> list[str]:
        peers = row["peers"]
        ours = next(iter(peers.values()))["our_spread"]
        hill = max(one["alpha_hill"] for one in row["errors"].values())
        rank = max(one["stable_rank"] for one in row["errors"].values())
        ratios = [times(peers[name]["ratio"]) for name in ("torch.linalg.svdvals", "spectral_stats")]
        return [f"6 × {row['n']}×{row['n']}", median(ours), *ratios, f"{rank:.0e}", f"{100 * hill:.1f} %"]

    headings = (
        "",
        "tail_stats",
        "torch / ours",
        "our exact path / ours",
        "stable rank off",
        "alpha_hill off",
    )
    return markdown_table(headings, [line(row) for row in rows_of(section) if row["peers"]])


def weightwatcher_table(section: Data) -> str:
    def line(row: Data) -> list[str]:
        own, ours = row["methods"]
        name = row["model"] + (", randomized" if row["randomize"] else "")
        return [
            name,
            str(row["threads"]),
            median(ours["spread"]),
            median(own["spread"]),
            times(row["speedup"]),
        ]

    headings = ("", "threads", "with spectral_fast", "its own", "/ ours")
    return markdown_table(headings, [line(row) for row in rows_of(section)])


def tracking_table(section: Data) -> str:
    def line(one: Data) -> list[str]:
        held = "" if one["rms_held"] is None else f"{100 * one['rms_held']:.2f} %"
        inside = f"{100 * one['covered']:.1f} %"
        return [one["statistic"], f"{100 * one['rms']:.3f} %", f"{one['largest']:.1e}", held, inside]

    headings = ("", "rms error", "largest", "holding the last exact value", "in the stated 95 %")
    return markdown_table(headings, [line(one) for one in section.get("summary", [])])


def tracking_times_table(section: Data) -> str:
    lines = [
        [
            f"{one['count']} × {one['rows']}×{one['cols']}",
            one["tracker"],
            *(median(one[name]) for name in ("tracked", "exact", "torch")),
            times(one["ratios"]),
            f"{one['asked']} of {one['looks']}",
        ]
        for one in section.get("times", [])
    ]
    headings = (
        "a matrix",
        "tracker",
        "tracked",
        "exact look",
        "torch",
        "torch / tracked",
        "exact looks asked for",
    )
    return markdown_table(headings, lines, left=2)


def monitor_table(section: Data) -> str:
    lines = [
        [name, *(f"{100 * found[key]:.2f} %" for key in ("median", "q1", "q3"))]
        for name, found in (
            ("by difference", section.get("by_difference")),
            ("by the monitor's account", section.get("by_account")),
        )
        if found is not None
    ]
    return markdown_table(("share of wall time", "median", "q1", "q3"), lines)


def left_out(section: Data) -> list[str]:
    """A line for each row without times, and why."""
    found = []
    if section["status"] != "ok":
        found.append(section["status"])
    for row in section.get("rows", []):
        if row["status"] != "ok":
            name = row.get("operation") or row.get("model") or row.get("spectrum") or ""
            if "asked" in row:
                name = f"{row['dtype']}, condition number {row['asked']:.0e}"
            found.append(f"{name or (shape(row) if 'm' in row else row['n'])}: {row['status']}")
    return found


TABLES: dict[str, tuple[Callable[[Data], str], ...]] = {
    **dict.fromkeys(("minilm", "nine-models", "single", "float64", "growth", "batches"), (svdvals_table,)),
    "threads": (threads_table,),
    "conditioning": (conditioning_table,),
    "stages": (stages_table,),
    "memory": (memory_table,),
    "fit": (fit_table,),
    "statistics": (share_table,),
    "goodness": (goodness_table,),
    "operations": (operations_table,),
    "leading": (leading_table,),
    "tail": (tail_table,),
    "weightwatcher": (weightwatcher_table,),
    "tracking": (tracking_table, tracking_times_table),
    "monitor": (monitor_table,),
}
