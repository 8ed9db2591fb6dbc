"""Figures for files; no display is needed."""

import numpy as np


def new_figure(width: float, height: float):
    """A matplotlib figure, inches wide and high, that needs no window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def put_image(axes, pixels: np.ndarray, title: str = "", **how) -> None:
    """Shows pixels (X, Y[, 3]), in the store's layout, with X to the right and no ticks."""
    axes.imshow(pixels.swapaxes(0, 1), **how)
    axes.set(xticks=[], yticks=[], title=title)
