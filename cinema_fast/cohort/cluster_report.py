"""The report of a clustering: the map, the criterion and the stability as pictures, the characteristics as tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from ..common.naming import count_studies, counted, printable
from ..figures.canvas import new_figure
from ..figures.page import write_page
from ..metrics.characteristics import Characteristic
from .cluster_config import METHODS, ClusterConfig
from .clustering import CRITERION, Clustering
from .embeddings import Embeddings


@dataclass(frozen=True)
class ClusterReport:
    """The clustering, as it is printed; lines: characteristics; left_out: {column: why}."""

    config: ClusterConfig
    embeddings: Embeddings
    found: Clustering
    lines: list[Characteristic]
    left_out: dict[str, str]
    without_row: int

    @property
    def choice(self) -> str:
        """How the number of clusters was chosen."""
        criterion, curve = CRITERION[self.config.method], self.found.curve
        name = {"bic": "BIC", "silhouette": "mean silhouette"}[criterion]
        if self.config.clusters:
            return f"given by --clusters {self.config.clusters}"
        best = {"bic": "lowest", "silhouette": "highest"}[criterion]
        return f"{best} {name} of {min(curve)} to {max(curve)} clusters"

    @property
    def sizes(self) -> list[int]:
        return np.bincount(self.found.clusters)[1:].tolist()

    def __str__(self) -> str:
        found, sizes = self.found, ", ".join(map(str, self.sizes))
        lines = [
            f"{count_studies(sum(self.sizes))}, {counted(found.number, 'cluster')} of {sizes} "
            f"({METHODS[self.config.method]}; number: {self.choice})"
        ]
        if found.stability:
            lines.append(f"stability: adjusted Rand index {found.stability} of {found.stability.n} pairs of subsamples")
            apart = found.separation
            lines.append(f"separation: silhouette {apart.silhouette:.2f}; null model (one Gaussian) {apart.one_cloud}, "
                         f"p = {apart.p:.3f}")
        lines.append(found.stable)
        lines += [f"not in {self.config.table}: {count_studies(self.without_row)}"] * bool(self.without_row)
        lines += [f"column {column} left out: {why}" for column, why in self.left_out.items()]
        return "\n".join([*lines, f"written: {self.config.out / 'report' / 'index.html'}"])


def write_cluster_report(
    folder: Path, report: ClusterReport, places: np.ndarray, columns: Mapping[str, Mapping]
) -> None:
    """Write map.png, number.png, and index.html, which holds both and needs no other file.

    places (n, 2): coordinates of the map. columns: {name: {study: number or word}}; the column with the largest effect
    colours a second map.
    """
    folder.mkdir(parents=True, exist_ok=True)
    strongest = max((line for line in report.lines if line.effect is not None and line.word is None),
                    key=lambda line: abs(line.effect), default=None)
    values = None
    if strongest:
        values = np.array([columns[strongest.column].get(study, np.nan) for study in report.embeddings.studies])
    draw_map(folder / "map.png", places, report.found.clusters, _axis(report), strongest and strongest.column, values)
    draw_criterion(folder / "number.png", report.found.curve, CRITERION[report.config.method], report.found.number)
    values = {
        "report": report,
        "found": report.found,
        "tables": {column: list(lines) for column, lines in groupby(report.lines, key=lambda line: line.column)},
        "pictures": [((folder / f"{name}.png").read_bytes(), caption) for name, caption in _PICTURES],
    }
    template = Path(__file__).with_name("cluster_report.html.j2")
    write_page(folder / "index.html", template, values, {"number": _number, "p": _p})


def draw_map(path: Path, places: np.ndarray, clusters: np.ndarray, axis: str, name: str | None, values) -> None:
    """Studies at places (n, 2), coloured by cluster; and, where there is a `name`, by values (n,), NaN in grey."""
    figure = new_figure(10.5 if name else 5.5, 4.5)
    panels = figure.subplots(1, 2 if name else 1, squeeze=False)[0]
    for cluster in range(1, clusters.max() + 1):
        of = clusters == cluster
        panels[0].scatter(*places[of].T, s=12, color=f"C{(cluster - 1) % 10}", marker="os^"[(cluster - 1) // 10 % 3],
                          label=f"{cluster} (n = {of.sum()})")
    panels[0].legend(title="cluster", fontsize="small")
    if name:
        known = np.isfinite(values)
        panels[1].scatter(*places[~known].T, s=12, color="lightgrey")
        shown = panels[1].scatter(*places[known].T, s=12, c=values[known], cmap="viridis")
        # a dollar begins a formula
        figure.colorbar(shown, ax=panels[1], label=printable(name).replace("$", r"\$"))
    for axes in panels:
        axes.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2")
    figure.savefig(path, dpi=110, metadata=_SAME)


def draw_criterion(path: Path, curve: Mapping[int, float], criterion: str, number: int) -> None:
    """The criterion by number of clusters, and the number that was chosen."""
    figure = new_figure(5, 3.2)
    axes = figure.subplots()
    axes.plot(list(curve), list(curve.values()), marker="o")
    axes.axvline(number, color="C3", linestyle="--", label=f"chosen: {number}")
    axes.set(xlabel="number of clusters", ylabel={"bic": "BIC", "silhouette": "mean silhouette"}[criterion])
    axes.set_xticks(list(curve))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110, metadata=_SAME)


_SAME = {"Software": None}  # no version of the library in the file


def _axis(report: ClusterReport) -> str:
    return {"pca": "component", "tsne": "t-SNE"}[report.config.map]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _p(line: Characteristic) -> str:
    if line.p_adjusted is None:
        return ""
    text = "< 0.001" if line.p_adjusted < 0.001 else f"{line.p_adjusted:.3f}"
    return text + (" *" if line.small else "")


_PICTURES = (("map", "Map of the studies: by cluster, and by the column with the largest effect"),
             ("number", "Criterion by number of clusters"))
