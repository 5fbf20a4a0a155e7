"""The page of a reproduction: what was found next to what the paper found, as Markdown with pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binom

from spectral_fast.lifecycle.figures.importance import draw_correlation, draw_importance
from spectral_fast.lifecycle.figures.measurement import figure_of
from spectral_fast.lifecycle.figures.pruning import draw_pruning
from spectral_fast.lifecycle.findings import ALPHAS, Finding, findings
from spectral_fast.lifecycle.importance import HEAVIER_TAIL
from spectral_fast.lifecycle.outputs import write_figure, write_text
from spectral_fast.lifecycle.reproduce import Reproduction, Trained
from spectral_fast.lifecycle.series import Floats

# Claimed of what is only noise, at most (docs/lifecycle.md).
_FALSE_POSITIVES = 0.05

# What readers' notes and the abstract of arXiv 2604.22778 say, and where this package measures it.
_CLAIMS = (
    ("compression of the stable rank travels from early to late layers", "wave", "stable_rank"),
    ("then it reverses", "reversal", "stable_rank"),
    *(("α keeps a gradient over depth", "gradient", name) for name in ALPHAS),
    *(("α is an inverted U over depth in deeper models", "inverted U", name) for name in ALPHAS),
    *(("Q and K move more than V and O", "asymmetry", name) for name in ("stable_rank", *ALPHAS)),
    *(("rank is fast, α slow: two time scales", "timescales", name) for name in ALPHAS),
    *(("Δα grows as L^0.26", "scaling", name) for name in ALPHAS),
)


def write_page(found: Reproduction, folder: Path) -> Path:
    """Write index.md and its pictures into a folder, whole or not at all each, and return the former.

    Raises OSError where they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(found)
    for name, (_, draw) in pictures.items():
        write_figure(folder / name, draw())
    text = "\n".join(_lines(found, pictures)) + "\n"
    page = folder / "index.md"
    write_text(page, text)
    return page


Pictures = dict[str, tuple[str, Callable[[], Figure]]]


def _lines(found: Reproduction, pictures: Pictures) -> Iterable[str]:
    plan, runs = found.plan, found.runs
    seconds = sum(run.summary.seconds for run in runs)
    yield "# A small reproduction"
    yield ""
    yield (
        "Models of "
        f"{', '.join(map(str, plan.depths))} layers, width {plan.model.width}, context {plan.model.context}, "
        f"a vocabulary of {plan.model.vocabulary}; seeds {', '.join(map(str, plan.seeds))}; "
        f"{plan.training.steps} steps of {plan.training.batch} sequences, "
        f"AdamW at {plan.training.lr:g}, cosine. "
        f"All singular values of all block matrices every {plan.training.every} steps. "
        f"Training took {seconds / 60:.0f} minutes of one core each in all."
    )
    yield ""
    yield (
        "Written by `spectral-fast lifecycle reproduce`, numbers as found; lifecycle.md has the definitions."
    )
    yield ""
    yield from _table(
        ("layers", "seed", "parameters", "held-out loss, nats a token", "seconds", "of which looks"),
        (
            (
                str(run.layers),
                str(run.seed),
                f"{run.summary.parameters:,}",
                f"{run.summary.held_out_loss:.3f}",
                f"{run.summary.seconds:.0f}",
                f"{run.summary.look_seconds / run.summary.seconds:.1%}" if run.summary.seconds else "",
            )
            for run in runs
        ),
    )
    yield from _picture("runs.png", pictures)
    yield from _claims(found)
    yield from _importance(runs)
    yield from _pruning(runs)
    yield "## Pictures"
    yield ""
    for name in pictures:
        if name != "runs.png":
            yield from _picture(name, pictures)
    yield from _every_finding(found)


def _claims(found: Reproduction) -> Iterable[str]:
    rows = [finding for measurement in found.measurements for finding in findings(measurement)]
    yield "## Phenomena"
    yield ""
    yield (
        "Of the runs where a phenomenon can be measured: in how many it is claimed (its test errs on at most "
        "5 % of runs without it), the chance of so many or more by error alone, and the median and range of "
        "the estimate over these runs, claimed or not."
    )
    yield ""
    table = []
    for claim, phenomenon, statistic in _CLAIMS:
        mine = [row for row in rows if (row.phenomenon, row.statistic) == (phenomenon, statistic)]
        able = [row for row in mine if not math.isnan(row.p_value)]
        claimed = [row for row in able if row.detected]
        if not able:
            table.append((claim, statistic, "0 of 0", "", "not measurable: " + _first_reason(mine)))
            continue
        chance = float(binom.sf(len(claimed) - 1, len(able), _FALSE_POSITIVES))
        table.append((claim, statistic, f"{len(claimed)} of {len(able)}", f"{chance:.2g}", _estimates(able)))
    yield from _table(("the paper", "measured on", "claimed in", "chance", "estimate"), table)


def _first_reason(rows: Sequence[Finding]) -> str:
    return next((row.reason for row in rows if row.reason), "")


def _estimates(rows: Sequence[Finding]) -> str:
    values = [row.estimate for row in rows if math.isfinite(row.estimate)]
    if not values:
        return ""
    unit = rows[0].unit
    if len(values) == 1:
        interval = next(row.interval for row in rows if math.isfinite(row.estimate))
        return f"{values[0]:.3g}{_interval(*interval)} {unit}"
    return f"{np.median(values):.3g} ({min(values):.3g} to {max(values):.3g}) {unit}"


def _importance(runs: Sequence[Trained]) -> Iterable[str]:
    yield "## Importance of layers"
    yield ""
    yield (
        "What the held-out loss gains without a block, against the mean α of its matrices: Spearman's ρ with "
        "its 95 % interval over layers and p-value. The paper: |ρ| 0.69 to 0.84, not significant at 8 layers."
    )
    yield ""
    rows = []
    for run in runs:
        if run.importance is None:
            continue
        cells = [str(run.layers), str(run.seed)]
        for name in (*HEAVIER_TAIL, "depth"):
            one = run.importance.correlations[name]
            cells.append(f"{one.rho:.2f}{_interval(one.low, one.high)}, p {one.p_value:.2g}")
        rows.append(tuple(cells))
    yield from _table(("layers", "seed", *HEAVIER_TAIL, "depth"), rows)


def _pruning(runs: Sequence[Trained]) -> Iterable[str]:
    yield "## Pruning"
    yield ""
    yield (
        "Δ perplexity with a quarter of the blocks removed: lightest tails first with the first and last "
        "block protected, Last-N, the mean over random orders (protected likewise), best and worst order by "
        "measured importance; and Last-N over spectral with its 95 % interval over the text. The paper: 1.1 "
        "to 3.6."
    )
    yield ""
    spectral = [f"{name}-protected" for name in HEAVIER_TAIL]
    orders = (*spectral, "last-n", "random-protected", "best", "worst")
    rows = []
    for run in runs:
        if run.pruning is None:
            continue
        place = max(1, run.layers // 4) - 1
        curves = run.pruning.curves
        cells = [str(run.layers), str(run.seed), str(place + 1), f"{run.pruning.perplexity:.1f}"]
        cells += [_number(curves[name].mean, place) if name in curves else "" for name in orders]
        for name in spectral:
            ratio = run.pruning.last_over.get(name)
            known = ratio is not None and place < len(ratio.value) and math.isfinite(ratio.value[place])
            cells.append(
                f"{ratio.value[place]:.2f}{_interval(ratio.low[place], ratio.high[place])}"
                if ratio is not None and known
                else ""
            )
        rows.append(tuple(cells))
    headings = (
        "layers",
        "seed",
        "removed",
        "perplexity",
        *orders,
        *(f"last-n / {name}" for name in spectral),
    )
    yield from _table(headings, rows)


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" ({low:.2g} to {high:.2g})"


def _number(values: Floats, place: int) -> str:
    return f"{values[place]:.3g}" if place < len(values) and math.isfinite(values[place]) else ""


def _every_finding(found: Reproduction) -> Iterable[str]:
    yield "## Every measurement"
    yield ""
    yield "p-values are of each line alone."
    yield ""
    rows = []
    for measurement in found.measurements:
        for row in findings(measurement):
            low, high = row.interval
            rows.append(
                (
                    row.run or "all",
                    row.phenomenon,
                    row.statistic,
                    f"{row.estimate:.3g} {row.unit}" if math.isfinite(row.estimate) else "",
                    "" if math.isnan(low) else f"{low:.3g} to {high:.3g}",
                    "" if math.isnan(row.p_value) else f"{row.p_value:.2g}",
                    "claimed" if row.detected else row.reason or "not claimed",
                )
            )
    yield from _table(("run", "phenomenon", "statistic", "estimate", "95 %", "p", ""), rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |"
    yield ""


def _picture(name: str, pictures: Pictures) -> Iterable[str]:
    caption, _ = pictures[name]
    yield f"![{caption}]({name})"
    yield ""
    yield f"*{caption}*"
    yield ""


def _pictures(found: Reproduction) -> Pictures:
    """By file name: caption, and what draws it. Of the phenomena, the deepest model's first seed."""
    deepest = found.runs[len(found.runs) - len(found.plan.seeds)]
    pictures: Pictures = {
        "runs.png": (
            "Stable rank and the three α, mean over all block matrices of a run",
            partial(_runs, found),
        )
    }
    for measurement in found.measurements:
        if measurement.result is None or measurement.run not in ("", deepest.name):
            continue
        parts = (measurement.phenomenon, measurement.statistic)
        where = deepest.name if measurement.run else "all runs"
        caption = f"{parts[0]}, {parts[1]}: {where}"
        pictures[f"{'-'.join(parts)}.png"] = (caption, partial(figure_of, measurement))
    if deepest.pruning is not None:
        pictures["importance.png"] = (f"Importance of blocks: {deepest.name}", partial(_blocks, deepest))
        pictures["pruning.png"] = (f"Pruning by three exponents: {deepest.name}", partial(_orders, deepest))
    return pictures


def _runs(found: Reproduction) -> Figure:
    figure = Figure(figsize=(15, 4), layout="constrained")
    panels = figure.subplots(1, 4)
    depths = found.plan.depths
    for axes, statistic in zip(panels, ("stable_rank", *ALPHAS), strict=True):
        for run in found.runs:
            looks = run.looks.trajectories
            shade = 0.9 * depths.index(run.layers) / max(1, len(depths) - 1)
            label = f"{run.layers} layers" if run.seed == found.plan.seeds[0] else None
            mean = looks.layerwise(statistic).mean(axis=1)
            axes.plot(looks.steps, mean, color=_viridis(shade), label=label, linewidth=1.2)
        axes.set_title(statistic)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    return figure


def _viridis(share: float) -> tuple[float, float, float, float]:
    color: tuple[float, float, float, float] = matplotlib.colormaps["viridis"](share)
    return color


def _blocks(run: Trained) -> Figure:
    assert run.importance is not None
    figure = Figure(figsize=(16, 4), layout="constrained")
    panels = figure.subplots(1, 4)
    draw_importance(run.importance, panels[0])
    for axes, exponent in zip(panels[1:], HEAVIER_TAIL, strict=True):
        draw_correlation(run.importance, exponent, axes)
    return figure


def _orders(run: Trained) -> Figure:
    assert run.pruning is not None
    figure = Figure(figsize=(15, 5), layout="constrained")
    for axes, exponent in zip(figure.subplots(1, 3, sharey=True), HEAVIER_TAIL, strict=True):
        draw_pruning(run.pruning, exponent, axes)
    return figure
