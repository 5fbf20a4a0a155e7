"""The page: one file that asks for nothing else, and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from spectral_fast._version import __version__
from spectral_fast.monitor.report.history import Audit, History, Statistic
from spectral_fast.monitor.report.panels import Section, svg_uri
from spectral_fast.monitor.report.words import STATISTICS, count, number, percent, role_name, with_error

# Nothing is fetched and no script runs, whatever stands in a matrix's name.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --quiet: #59626b; --page: #ffffff; --line: #d5d9de;
  --panel: #f6f7f9; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --quiet: #a2abb4; --page: #15181c;
  --line: #3a4149; --panel: #1d2126; --link: #7db8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2.5rem) 4rem; max-width: 110rem;
  background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .25rem; }
a { color: var(--link); }
p, dl { max-width: 75ch; margin: .25rem 0 1rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { color: var(--quiet); } dd { margin: 0; }
.note { border-left: 4px solid var(--link); padding: .25rem .75rem; background: var(--panel); }
.panels { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.panels img { display: block; width: 100%; height: auto; padding: 4px; background: var(--panel);
  border-radius: 6px; }
.scroll { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); border-radius: 6px; }
.scroll:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem;
  white-space: nowrap; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th { background: var(--panel); white-space: normal; vertical-align: bottom; min-width: 4.5rem;
  overflow-wrap: normal; }
th.text, td.text { text-align: left; }
caption { text-align: left; padding: .4rem .7rem; white-space: normal; color: var(--quiet); }
"""


def html_page(title: str, history: History, sections: Sequence[Section], audits: dict[str, Audit]) -> str:
    """The whole page."""
    body = [_overview(history)]
    links = [(section.name, section.title) for section in sections]
    for section in sections:
        body.append(_section(section, audits if section.name == "audit" else {}))
    links.append(("values", "First and last values"))
    body.append(_first_and_last(history))
    contents = "".join(f'<li><a href="#{escape(name)}">{escape(text)}</a></li>' for name, text in links)
    heading = f"Spectra of the run {title}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">
<title>{escape(heading)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{escape(heading)}</h1></header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>
{"".join(body)}
</main>
<footer><p>Made by spectral_fast {escape(__version__)}.</p></footer>
</body>
</html>
"""


def _overview(history: History) -> str:
    kinds = [
        (history.exact & ~history.other, "exact"),
        (history.exact & history.other, "partly exact"),
        (~history.exact, "tracked"),
    ]
    looks = ", ".join(f"{which.sum():,} {kind}" for which, kind in kinds if which.any())
    roles = list(dict.fromkeys(role_name(matrix.role) for matrix in history.matrices))
    layers = {matrix.layer for matrix in history.matrices if matrix.layer is not None}
    first, last = history.steps[0], history.steps[-1]
    steps = f"at steps {first:,} to {last:,}" if last > first else f"at step {first:,}"
    depth = f" in {count(len(layers), 'layer', 'layers')}" if layers else ""
    facts = {
        "Looks": f"{looks}, {steps}",
        "Matrices": f"{len(history.matrices):,}{depth}: " + ", ".join(roles),
        "Cost": f"{percent(history.share[-1])} of wall time when the last look was made",
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    note = ""
    if history.unsealed:
        note = (
            '<p class="note">This run is still being written, or its process was killed. '
            "Its looks so far are all here.</p>"
        )
    return f'<section aria-label="Overview">{note}<dl>{rows}</dl></section>'


def _section(section: Section, audits: dict[str, Audit]) -> str:
    parts = [f'<section id="{escape(section.name)}"><h2>{escape(section.title)}</h2>']
    parts.append(f"<p>{escape(section.caption if section.panels or audits else section.missing)}</p>")
    if audits:
        parts.append(_audit_table(audits))
    if section.panels:
        images = "".join(
            f'<img src="{svg_uri(panel)}" alt="{escape(panel.alt)}" width="518" height="336">'
            for panel in section.panels
        )
        parts.append(f'<div class="panels">{images}</div>')
    return "".join([*parts, "</section>"])


def _audit_table(audits: dict[str, Audit]) -> str:
    head = [
        "statistic",
        "came by",
        "pairs",
        "steps between",
        "median distance",
        "median interval",
        "within it",
    ]
    rows = []
    for name, audit in audits.items():
        for held in (False, True):
            chosen = audit.held == held
            if not chosen.any():
                continue
            stated = chosen & np.isfinite(audit.interval)
            within = (audit.difference <= audit.interval)[stated]
            rows.append([
                STATISTICS[name][0], "held" if held else "estimate", f"{chosen.sum():,}",
                number(float(np.median(audit.gap[chosen]))),
                percent(float(np.median(audit.difference[chosen]))),
                f"± {percent(float(np.median(audit.interval[stated])))}" if stated.any() else "none stated",
                f"{percent(float(within.mean()))} of {stated.sum():,}" if stated.any() else "–",
            ])  # fmt: skip
    return _table("Estimates against the exact look that followed them", head, rows, text=(0, 1))


def _first_and_last(history: History) -> str:
    head = ["matrix", "layer", "role", "shape"]
    columns: list[list[str]] = [[] for _ in history.matrices]
    for column, matrix in zip(columns, history.matrices, strict=True):
        layer = "–" if matrix.layer is None else str(matrix.layer)
        column += [matrix.name, layer, role_name(matrix.role), f"{matrix.rows} × {matrix.cols}"]
    for name, (title, _) in STATISTICS.items():
        head += [f"{title}: first", "last"]
        statistic = history.statistic(name)
        for index, column in enumerate(columns):
            column += _ends(history, statistic, index)
    caption = (
        f"Values at step {history.steps[0]:,} and at step {history.steps[-1]:,}, or at the step in brackets; "
        "± is the standard error of an estimate."
    )
    return (
        '<section id="values"><h2>First and last values</h2>'
        + _table(caption, head, columns, text=(0, 2))
        + "</section>"
    )


def _ends(history: History, statistic: Statistic, index: int) -> list[str]:
    known = np.flatnonzero(np.isfinite(statistic.value[:, index]))
    if len(known) == 0:
        return ["–", "–"]
    cells = []
    for look, expected in ((known[0], 0), (known[-1], len(history.steps) - 1)):
        text = with_error(statistic.value[look, index], statistic.error[look, index])
        notes = ["held"] if statistic.held[look, index] else []
        notes += [] if look == expected else [f"step {history.steps[look]:,}"]
        cells.append(f"{text} ({', '.join(notes)})" if notes else text)
    return cells


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[int]) -> str:
    """A table that scrolls by itself; text: the columns that hold words."""
    kind = [' class="text"' if column in text else "" for column in range(len(head))]
    titles = "".join(f'<th scope="col"{k}>{escape(title)}</th>' for k, title in zip(kind, head, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kind, row, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
