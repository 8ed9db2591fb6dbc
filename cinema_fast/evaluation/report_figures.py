"""Figures of the report, as PNG bytes: agreement, receiver operating characteristic, reliability, volume over time."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from ..common.extras import need
from ..common.naming import printable
from ..figures.canvas import new_figure
from ..figures.overlays import COLOURS
from ..metrics.cases import Exhibit
from ..metrics.classification import Classification
from ..metrics.regression import Agreement
from ..metrics.rows import Row, number

SHOWN_CLASSES = 8


def agreement_png(title: str, first: Sequence[float], second: Sequence[float], names: tuple[str, str]) -> bytes | None:
    """Scatter and Bland-Altman plot of two measurements (n,), second against first; None where no pair is finite.

    names: of the first and the second measurement.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    known = np.isfinite(first) & np.isfinite(second)
    first, second = first[known], second[known]
    if not len(first):
        return None
    figure = new_figure(8, 3.4)
    scatter, bland = figure.subplots(1, 2)
    ends = min(first.min(), second.min()), max(first.max(), second.max())
    scatter.plot(ends, ends, color="0.6", linewidth=1)
    scatter.plot(first, second, ".", color="C0", alpha=0.7)
    scatter.set(xlabel=names[0], ylabel=names[1])
    agreement = Agreement(second, first).point()
    bland.plot((first + second) / 2, second - first, ".", color="C0", alpha=0.7)
    for name, style in (("bias", "-"), ("loa_low", "--"), ("loa_high", "--")):
        if math.isfinite(agreement[name]):
            bland.axhline(agreement[name], color="C3", linestyle=style, linewidth=1)
            where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
            bland.annotate(f"{agreement[name]:.3g}", (1, agreement[name]), fontsize=8, color="C3", **where)
    bland.set(xlabel="mean of both", ylabel=f"{names[1]} - {names[0]}")
    return _png(figure, f"{title}, n = {len(first)}")


def classification_png(title: str, measure: Classification, threshold: float) -> bytes:
    """Confusion table, ROC and reliability curve; without probabilities only the confusion table."""
    with_p = measure.p is not None
    figure = new_figure(11 if with_p else 4.2, 3.6)
    confusion, *others = np.atleast_1d(figure.subplots(1, 3 if with_p else 1))
    _draw_confusion(confusion, measure)
    if with_p:
        _draw_roc(others[0], measure, threshold)
        _draw_reliability(others[1], measure)
    return _png(figure, f"{title}, n = {measure.n}")


def volume_png(exhibit: Exhibit) -> bytes:
    """Predicted volumes over the cycle, volumes of the labels as crosses, the ejection fraction of both, and flags.

    Curves have the colours of the outlines.
    """
    figure = new_figure(5.2, 3.2)
    axes = figure.subplots()
    for label, name in exhibit.classes.items():
        if name not in exhibit.curves:
            continue
        curve = exhibit.curves[name]
        colour = _colour(label - 1)
        axes.plot(exhibit.frames, curve, "-" if len(curve) > 2 else "o", color=colour, label=f" {name}")
        labelled = [(t, ml[name]) for t, ml in exhibit.truth_ml.items() if name in ml]
        axes.plot(*zip(*labelled) if labelled else ([], []), "x", color=colour, markersize=9)
    axes.set(xlabel="frame", ylabel="volume (ml); x: label maps", ylim=(0, None))
    _legend(axes)
    parts = [f"{name} EF of the predicted curve {ef:.1f} %" for name, ef in exhibit.cycle_ef.items()]
    if "lv_ef" in exhibit.values:
        parts.append("LV EF at labelled frames {:.1f} %, labels {:.1f} %".format(*exhibit.values["lv_ef"]))
    parts += [f"flag: {flag}" for flag in exhibit.flags]
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.17 * len(parts))
    return _png(figure, "\n".join(parts))


def _colour(k: int) -> tuple[float, ...]:
    """The colour of class or landmark number `k`, from 0, in the pictures."""
    return tuple(value / 255 for value in COLOURS[k % len(COLOURS)])


def dice_png(title: str, rows: Mapping[str, Sequence[Row]]) -> bytes:
    """Dice of every row as a point, and quartiles, per class in the order of `rows`, in the colours of the outlines."""
    figure = new_figure(5.2, 3.2)
    axes = figure.subplots()
    scores = [[number(row, "dice") for row in found if math.isfinite(number(row, "dice"))] for found in rows.values()]
    for place, values in enumerate(scores):
        # points are spread by rank, not at random
        axes.plot(place + (np.arange(len(values)) % 7 - 3) / 25, values, ".", color=_colour(place), alpha=0.5)
        if values:
            axes.boxplot(values, positions=[place], widths=0.5, showfliers=False)
    axes.set_xticks(range(len(scores)), [f"{name}\nn = {len(v)}" for name, v in zip(map(printable, rows), scores)])
    axes.set(ylabel="Dice", xlim=(-0.6, len(scores) - 0.4))
    return _png(figure, title)


def distances_png(title: str, distances: Mapping[str, Sequence[float]]) -> bytes:
    """Share of landmarks found within a distance, in the colours of their crosses; if some were not found, the curve
    stays below 1."""
    figure = new_figure(5.2, 3.2)
    axes = figure.subplots()
    for k, (name, values) in enumerate(distances.items()):
        ordered = np.sort(np.asarray(values, float))
        known = ordered[np.isfinite(ordered)]
        share = np.arange(1, len(known) + 1) / len(ordered)
        label = f" {printable(name)}, n = {len(ordered)}"
        axes.step([0, *known], [0, *share], where="post", color=_colour(k), label=label)
    axes.set(xlabel="distance (mm)", ylabel="share within", ylim=(0, 1.02), xlim=(0, None))
    _legend(axes)
    return _png(figure, title)


def _draw_confusion(axes, measure: Classification) -> None:
    k = len(measure.classes)
    table = np.zeros((k, k), int)
    np.add.at(table, (measure.truth, measure.decided), 1)
    axes.imshow(table / table.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    for i in range(k):
        for j in range(k):
            share = table[i, j] / max(table[i].sum(), 1)
            axes.text(j, i, str(table[i, j]), ha="center", va="center", color="w" if share > 0.5 else "k", fontsize=9)
    names = [textwrap.fill(printable(name), 16) for name in measure.classes]
    axes.set_xticks(range(k), names, rotation=40 if k > 2 else 0, ha="right" if k > 2 else "center")
    axes.set_yticks(range(k), names)
    axes.set(xlabel="predicted", ylabel="true")


def _draw_roc(axes, measure: Classification, threshold: float) -> None:
    axes.plot((0, 1), (0, 1), color="0.7", linewidth=1)
    shown = measure.judged[:SHOWN_CLASSES] if len(measure.present) > 1 else []
    for c in shown:
        metrics = need("sklearn.metrics", "ROC curves are computed")
        fpr, tpr, _ = metrics.roc_curve(measure.truth == c, measure.p[:, c])
        area = metrics.roc_auc_score(measure.truth == c, measure.p[:, c])
        axes.plot(fpr, tpr, label=f" {printable(measure.classes[c])}, AUROC {area:.3f}")
    if shown and measure.binary:
        point = measure.point()
        label = f" threshold {threshold:g}"
        axes.plot(1 - point["specificity"], point["sensitivity"], "o", color="C3", label=label)
    left = len(measure.judged) - len(shown)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="")
    if not shown or left:
        axes.set_title(f"{left} classes not drawn" if shown else "undefined: one class only", fontsize=9)
    if shown:
        _legend(axes, "ROC")


def _draw_reliability(axes, measure: Classification) -> None:
    curve = measure.reliability()
    axes.plot((0, 1), (0, 1), color="0.7", linewidth=1)
    axes.plot(curve["predicted"], curve["observed"], "o-", color="0.2")  # not in the legend
    for x, y, n in zip(curve["predicted"], curve["observed"], curve["n"]):
        axes.annotate(str(n), (x, y), textcoords="offset points", xytext=(4, -9), fontsize=7)
    of = printable(measure.classes[1]) if measure.binary else "the most likely class"
    axes.set(xlabel=f"probability of {of}", ylabel="observed share\n(n beside)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def _legend(axes, title: str = "") -> None:
    """A legend below all panels, where it covers no curve; the figure grows by its height."""
    figure, (handles, names) = axes.figure, axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    columns = min(len(names), max(1, int(16 * width / (max(map(len, names)) + 6))))  # 16 letters an inch
    figure.set_size_inches(width, height + 0.17 * (-(-len(names) // columns) + bool(title)))
    how = {"loc": "outside lower center", "ncols": columns, "fontsize": 8, "title_fontsize": 8, "frameon": False}
    for text in figure.legend(handles, names, title=title, **how).get_texts():
        text.set_parse_math(False)  # $ in names of files and tables is not a formula


def _png(figure, title: str) -> bytes:
    figure.suptitle(printable(title), fontsize=10, parse_math=False)
    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set_parse_math(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return file.getvalue()
