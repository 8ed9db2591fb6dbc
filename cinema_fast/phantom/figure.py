"""A picture of a synthetic study: all views at end-diastole and end-systole, labels, landmarks, motion, volumes."""

from pathlib import Path

import numpy as np

from ..common.views import VIEWS
from .study import PhantomStudy

_COLOURS = np.array([[0, 0, 0, 0], [60, 130, 255, 110], [70, 200, 90, 110], [255, 90, 70, 110]], np.uint8)


def draw_phantom(study: PhantomStudy, path: str | Path, *, margin: float = 0.14) -> None:
    """Write a PNG of `study` to `path`; `margin` is the share cut from every side of each image.

    Rows: end-diastole, end-systole, labels (blue right ventricle, green myocardium, red left ventricle) with the
    landmarks (yellow) and the true motion from end-diastole to end-systole. Columns: three short-axis slices, three
    long axes. The left ventricle's volume over the cycle is drawn below.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    es = int(study.lv_ml.argmin())
    n_slices = study.images["sax"].shape[2]
    columns = [("sax", round(n_slices * share)) for share in (0.25, 0.45, 0.65)]
    columns += [(view, None) for view in VIEWS if view != "sax"]
    figure = Figure(figsize=(12, 7.6), facecolor="black")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(4, 6, height_ratios=(2, 2, 2, 1.15), wspace=0.02, hspace=0.04)
    for column, (view, z) in enumerate(columns):
        _draw_column(figure, grid, column, study, view, z, es, margin)
    axis = figure.add_subplot(grid[3, :], facecolor="black")
    time = np.arange(study.n_frames) * study.frame_time_ms
    axis.plot(time, study.lv_ml, "o-", color="#ff5a46", ms=3, label="left ventricle")
    axis.plot(time, study.rv_ml, "o-", color="#3c82ff", ms=3, label="right ventricle")
    axis.set_xlabel("time (ms)", color="white")
    axis.set_ylabel("volume (ml)", color="white")
    axis.set_ylim(0)
    axis.tick_params(colors="white")
    axis.legend(facecolor="black", labelcolor="white", ncols=2, frameon=False)
    figure.set_dpi(104)
    figure.subplots_adjust(0.055, 0.065, 0.99, 0.965)
    canvas.draw()
    # A palette keeps a noisy picture at a third of its size; this one does not lose the few bright colours.
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def _draw_column(
    figure, grid, column: int, study: PhantomStudy, view: str, z: int | None, es: int, margin: float
) -> None:
    """One column of three images: `view` (slice `z` of a stack) at both moments, and its truth."""
    pick = (slice(None), slice(None)) if z is None else (slice(None), slice(None), z)
    image, label = study.images[view][pick], study.labels[view][pick]
    size = image.shape[0]
    low, high = margin * size, (1 - margin) * size
    bright = np.percentile(image, 99)
    for row, (t, title) in enumerate(((0, "end-diastole"), (es, "end-systole"), (0, "truth"))):
        axis = figure.add_subplot(grid[row, column])
        axis.imshow(image[..., t].T, cmap="gray", vmin=0, vmax=bright)
        axis.set(xlim=(low, high), ylim=(high, low), xticks=[], yticks=[])
        if row == 0:
            name = view.replace("_", " ").upper() if z is None else f"SAX slice {z}"
            axis.set_title(name, color="white", fontsize=10)
        if column == 0:
            axis.set_ylabel(title, color="white", fontsize=10)
    axis.imshow(_COLOURS[label[..., 0].T])
    step = max(2, size // 36)
    motion = study.displacement(view, 0, es)[(slice(0, 2), *pick)][:, ::step, ::step] / study.spacing_mm[view][0]
    x, y = np.meshgrid(np.arange(0, size, step), np.arange(0, size, step), indexing="ij")
    moves = (label[::step, ::step, 0] > 0) & (np.abs(motion).sum(0) > 0)
    arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006}
    axis.quiver(x[moves], y[moves], *(m[moves] for m in motion), color="white", **arrows)
    if view in study.landmarks:
        axis.plot(*study.landmarks[view][0].T, "o", color="yellow", ms=3)
