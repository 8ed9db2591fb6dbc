"""A picture of a synthetic study in every sequence, with its label maps."""

from pathlib import Path

import numpy as np

from ..common.sequences import IN_WORDS, SEQUENCES
from ..common.structures import STRUCTURES
from .study import PhantomStudy

_RANGES_MS = {"t1map": (0, 2000), "t2map": (0, 140)}
_COLOURS = {
    "RV": "#3c82ff", "MYO": "#46c85a", "LV": "#ff5a46", "scar": "#ffe03a", "no-reflow": "#b03cff", "oedema": "#3af0f0",
    "LA": "#ff9a3c", "RA": "#9ab4ff",
}  # fmt: skip


def draw_sequences(study: PhantomStudy, path: str | Path, *, margin: float = 0.23) -> None:
    """Write a PNG of `study`, made with all sequences, to `path`; `margin` is the share cut from every side.

    A row per sequence. Columns: base, middle and apex of the short-axis stack, the four-chamber view, and the label
    maps of the middle slice and of the four-chamber view. Maps of T1 and T2 are in colour, with their scale in ms.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from PIL import Image

    figure = Figure(figsize=(11.2, 11.9), facecolor="black", dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(SEQUENCES), 6, gridspec_kw={"wspace": 0.02, "hspace": 0.03})
    colours = np.zeros((1 + max(STRUCTURES), 4))
    for label, name in STRUCTURES.items():
        colours[label] = to_rgba(_COLOURS[name])
    for row, name in zip(axes, SEQUENCES):
        views = ["sax", "lax_4c"] if name == "cine" else [f"{name}_sax", f"{name}_lax_4c"]
        stack, long = (study.images[view][..., 0] for view in views)
        drawn, long_drawn = (study.labels[view][..., 0] for view in views)
        n = stack.shape[2]
        slices = (0, 1, 2) if n == 3 else [int(n * share) for share in (0.25, 0.45, 0.68)]
        low, high = _RANGES_MS.get(name, (0, 1.1 * np.percentile(stack[drawn > 0], 99)))
        for axis, image in zip(row, [*(stack[..., z] for z in slices), long]):
            axis.imshow(image.T, cmap="turbo" if name in _RANGES_MS else "gray", vmin=low, vmax=high)
        for axis, labels in zip(row[4:], (drawn[..., slices[1]], long_drawn)):
            axis.imshow(colours[labels.T])
        size = stack.shape[0]
        for axis in row:
            axis.set_facecolor("black")
            axis.set(xlim=(margin * size, (1 - margin) * size), ylim=((1 - margin) * size, margin * size))
            axis.set(xticks=[], yticks=[])
        scale = f"\n{low} to {high} ms" if name in _RANGES_MS else ""
        row[0].set_ylabel(IN_WORDS[name] + scale, color="white", fontsize=10)
    for axis, title in zip(axes[0], ("base", "middle", "apex", "four-chamber", "labels", "labels")):
        axis.set_title(title, color="white", fontsize=10)
    figure.legend(
        handles=[Patch(color=_COLOURS[name], label=name) for name in STRUCTURES.values()], loc="lower center", ncols=8,
        facecolor="black", labelcolor="white", frameon=False, fontsize=9,
    )  # fmt: skip
    figure.subplots_adjust(0.045, 0.035, 0.995, 0.975)
    canvas.draw()
    # A palette keeps a noisy picture at a fraction of its size: the greys, the colours of maps and of labels.
    levels = np.linspace(0, 1, 120)[:, None]
    palette = np.concatenate([np.repeat(levels, 3, 1), colormaps["turbo"](levels[:, 0])[:, :3], colours[1:, :3]])
    chosen = Image.new("P", (1, 1))
    chosen.putpalette((255 * palette).round().astype(np.uint8).tobytes())
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    picture.quantize(palette=chosen, dither=Image.Dither.NONE).save(path, optimize=True)
