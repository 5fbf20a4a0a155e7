"""The picture of a model's spectra: the tail of every matrix and its fit, over depth.

Upper panels, one a role: the fraction of eigenvalues λ = σ² at or above a value, on two logarithmic
axes, one curve a layer. On these axes a power law of density exponent α is a straight line of slope
1 − α; the fit is drawn from its xmin on, so that the eye can judge it. Lower panels: stable rank
and α over depth, one line a role.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spectral_fast.models.roles import ROLE_ORDER
from spectral_fast.stats import SpectralStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from matplotlib.ticker import MaxNLocator

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")

# More fits than this in a panel hide the curves; deeper models show every second, third, ... layer.
_MAX_FITS = 8
ROLE_NAMES = {
    "q": "query",
    "k": "key",
    "v": "value",
    "kv": "key, value (fused)",
    "qkv": "query, key, value (fused)",
    "o": "attention output",
    "mlp_in": "MLP in",
    "mlp_gate": "MLP gate",
    "mlp_gate_in": "MLP gate, in (fused)",
    "mlp_out": "MLP out",
    "router": "router",
    "conv": "convolution",
    "other": "other matrices",
}
# Okabe and Ito's palette, told apart under the common colour deficiencies; the markers help too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class LayerSpectrum:
    """What the picture needs of one matrix: singular values of shape (r,), descending."""

    layer: int
    role: str
    svdvals: torch.Tensor
    stats: SpectralStats


def save_picture(spectra: Sequence[LayerSpectrum], path: Path, *, suffix: str, title: str) -> None:
    """Draw the picture of a model and write it to a file.

    Args:
        spectra: the matrices, at least one; several may share a layer and a role.
        path: the file to write.
        suffix: one of `PICTURE_SUFFIXES`, the kind of file, whatever the path's own suffix.
        title: what the spectra belong to.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    by_role: dict[str, list[LayerSpectrum]] = defaultdict(list)
    for spectrum in sorted(spectra, key=lambda s: (ROLE_ORDER.index(s.role), s.layer)):
        by_role[spectrum.role].append(spectrum)
    roles = len(by_role)
    columns = roles if roles <= 4 else min(-(-roles // 2), 4)
    panel_rows = -(-roles // columns)
    figure = Figure(figsize=(14, 3.7 * panel_rows + 5), layout="constrained")
    figure.suptitle(f"Spectra of the weight matrices of {title}", fontsize=17, fontweight="bold")
    heights = (3.7 * panel_rows + 0.8, 4.2)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    _draw_tails(upper, by_role, panel_rows, columns)
    _draw_depth(lower, by_role)
    figure.savefig(path, format=suffix.removeprefix("."), dpi=150)


def _draw_tails(
    area: "SubFigure", by_role: dict[str, list[LayerSpectrum]], panel_rows: int, columns: int
) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.lines import Line2D

    layers = sorted({s.layer for spectra in by_role.values() for s in spectra})
    every = -(-len(layers) // _MAX_FITS)
    fitted = set(layers[::every])
    # Without viridis' yellow end, which is hard to see on white.
    depth = Normalize(layers[0], max(layers[-1], layers[0] + 1))
    colours = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))

    grid = area.subplots(panel_rows, columns, sharey=True, squeeze=False)
    panels = list(grid.flat)
    smallest = 1 / max(len(s.svdvals) for spectra in by_role.values() for s in spectra)
    for axes, (role, spectra) in zip(panels, by_role.items(), strict=False):
        axes.set(xscale="log", yscale="log")
        for spectrum in spectra:
            _draw_tail(axes, spectrum, colours(depth(spectrum.layer)))
        for spectrum in spectra:  # on top of all curves
            if spectrum.layer in fitted:
                _draw_fit(axes, spectrum, colours(depth(spectrum.layer)))
        axes.set_xlim(left=_left_edge(spectra))
        _label_values(axes)
        axes.set_ylim(0.7 * smallest, 1.3)
        axes.set_title(ROLE_NAMES.get(role, role), fontsize=14)
        axes.grid(alpha=0.25, which="both", axis="x")
        axes.grid(alpha=0.25, axis="y")
        axes.tick_params(labelsize=12)
    for axes in panels[len(by_role) :]:
        axes.set_axis_off()
    area.supxlabel("eigenvalue λ = σ² of WᵀW", fontsize=14)
    area.supylabel("fraction of eigenvalues ≥ λ", fontsize=14)
    bar = area.colorbar(ScalarMappable(depth, colours), ax=panels, aspect=35, pad=0.01)
    bar.set_label("layer", fontsize=14)
    bar.ax.tick_params(labelsize=12)
    bar.locator = whole_numbers()
    curve = Line2D([], [], color="0.35", linewidth=1.6, label="spectrum")
    which = "" if every == 1 else f" (of one layer in {every})"
    fit = Line2D([], [], color="black", linestyle="--", label=f"power-law fit, slope 1 − α{which}")
    start = Line2D([], [], color="0.7", marker="o", markeredgecolor="black", linestyle="", label="its xmin")
    area.legend(handles=[curve, fit, start], loc="outside upper center", ncols=3, fontsize=12)


def _label_values(axes: "Axes") -> None:
    """Plain numbers where the logarithmic axis has few whole powers of ten; matplotlib's would overlap."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.get_xlim()
    decades = np.log10(high / low)
    axes.xaxis.set_minor_formatter(NullFormatter())
    if decades < 2.5:
        # Below 0.7 decades there may be one number of 1, 2, 5 in the panel, or none.
        steps = LogLocator(subs=(1, 2, 5) if decades < 1.3 else (1, 3))
        axes.xaxis.set_major_locator(MaxNLocator(4) if decades < 0.7 else steps)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _left_edge(spectra: Sequence[LayerSpectrum]) -> float | None:
    """Show the upper half of the spectra and all fits; the bulk would squeeze the tail."""
    edges = [float(s.svdvals[(len(s.svdvals) - 1) // 2]) ** 2 for s in spectra]
    edges += [float(s.stats.xmin) for s in spectra]
    edges = [edge for edge in edges if edge > 0]
    return 0.8 * min(edges) if edges else None


def _draw_tail(axes: "Axes", spectrum: LayerSpectrum, colour: Any) -> None:
    eigenvalues = spectrum.svdvals.double().numpy() ** 2
    eigenvalues = eigenvalues[eigenvalues > 0]  # zero has no place on a logarithmic axis
    fraction = np.arange(1, len(eigenvalues) + 1) / len(spectrum.svdvals)
    axes.step(eigenvalues, fraction, where="post", color=colour, linewidth=1.6)


def _draw_fit(axes: "Axes", spectrum: LayerSpectrum, colour: Any) -> None:
    alpha, xmin = float(spectrum.stats.alpha), float(spectrum.stats.xmin)
    if not np.isfinite([alpha, xmin]).all():
        return
    start = float(spectrum.stats.n_tail) / len(spectrum.svdvals)
    ends = np.array([xmin, float(spectrum.svdvals[0]) ** 2])
    axes.plot(ends, start * (ends / xmin) ** (1 - alpha), "--", color="black", linewidth=1)
    axes.plot(xmin, start, "o", color=colour, markeredgecolor="black", markersize=6)


def _draw_depth(area: "SubFigure", by_role: dict[str, list[LayerSpectrum]]) -> None:
    left, right = area.subplots(1, 2)
    for index, (role, spectra) in enumerate(by_role.items()):
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            # Shifted by one in each round of colours, so that no two roles look the same.
            "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
            "markersize": 5,
        }
        layers = [s.layer for s in spectra]
        ranks = [float(s.stats.stable_rank) for s in spectra]
        alphas = [float(s.stats.alpha) for s in spectra]
        errors = [float(s.stats.alpha_stderr) for s in spectra]
        left.plot(*_median_by_layer(layers, ranks), label=ROLE_NAMES.get(role, role), **style)
        # Side by side, or the error bars of the roles would hide each other.
        shift = 0.06 * (index - (len(by_role) - 1) / 2)
        at, middle = _median_by_layer(layers, alphas)
        right.plot([layer + shift for layer in at], middle, **style)
        right.errorbar(
            [layer + shift for layer in layers],
            alphas,
            errors,
            fmt="none",
            ecolor=style["color"],
            elinewidth=1,
            capsize=2,
        )
    left.set_title("Stable rank  Σσ² / σ₁²", fontsize=14)
    right.set_title("Power-law exponent α of λ  (± standard error)", fontsize=14)
    for axes in (left, right):
        axes.set_xlabel("layer", fontsize=14)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=12)
        axes.xaxis.set_major_locator(whole_numbers())
    area.legend(loc="outside right center", fontsize=12, frameon=False)


def whole_numbers() -> "MaxNLocator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _median_by_layer(layers: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """One value a layer, so that experts of one layer do not make the line jump up and down."""
    grouped: dict[int, list[float]] = defaultdict(list)
    for layer, value in zip(layers, values, strict=True):
        grouped[layer].append(value)
    return list(grouped), [median(group) for group in grouped.values()]
