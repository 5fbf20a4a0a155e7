"""The picture of any measurement of a phenomenon."""

from __future__ import annotations

from matplotlib.figure import Figure

from spectral_fast.lifecycle.asymmetry import Asymmetry
from spectral_fast.lifecycle.figures.asymmetry import draw_asymmetry
from spectral_fast.lifecycle.figures.gradient import draw_gradient, draw_slopes
from spectral_fast.lifecycle.figures.scaling import draw_scaling
from spectral_fast.lifecycle.figures.timescales import draw_timescales
from spectral_fast.lifecycle.figures.wave import draw_wave
from spectral_fast.lifecycle.findings import Measurement
from spectral_fast.lifecycle.gradient import Gradient
from spectral_fast.lifecycle.timescales import Timescales
from spectral_fast.lifecycle.wave import Wave


def figure_of(measurement: Measurement) -> Figure:
    """A figure of a measurement that applied, the run's name above it.

    Raises ValueError where it did not apply.
    """
    result = measurement.result
    if result is None:
        raise ValueError(f"there is nothing to draw of {measurement.phenomenon}: {measurement.reason}")
    panels = 2 if isinstance(result, Gradient) else 1
    figure = Figure(figsize=(7.5 * panels, 5), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if measurement.run:
        figure.suptitle(measurement.run)
    if isinstance(result, Wave):
        draw_wave(result, axes[0])
    elif isinstance(result, Gradient):
        draw_gradient(result, axes[0])
        draw_slopes(result, axes[1])
    elif isinstance(result, Asymmetry):
        draw_asymmetry(result, axes[0])
    elif isinstance(result, Timescales):
        draw_timescales(result, axes[0])
    else:
        draw_scaling(result, axes[0])
    return figure
