"""A cohort in two dimensions: the principal components of its embeddings, coloured by a quantity of each study."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..common.tables import read_table
from ..figures.canvas import new_figure


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) coordinates of vectors (n, D) along their directions of largest variance, and these shares of variance.

    Each direction points to where its largest entry is positive, so that a picture does not depend on the solver.
    """
    centred = vectors - vectors.mean(0)
    _, scales, directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    directions = np.pad(directions[:2], ((0, max(2 - len(directions), 0)), (0, 0)))
    largest = np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], 1)
    variance = np.zeros(2)
    variance[: len(scales)] = scales[:2] ** 2
    return centred @ (directions * np.where(largest < 0, -1, 1)).T, variance / max((scales**2).sum(), 1e-30)


def read_labels(path: Path, column: str, studies: Sequence[str]) -> np.ndarray:
    """(n,) float64: a column of numbers of a CSV table with a column `study`, NaN where a study has none.

    Raises ValueError naming the file and what it lacks, OSError where it cannot be read (see `read_table`).
    """
    found = read_table(path).numeric(column)
    values = np.array([found.get(study, math.nan) for study in studies])
    if not np.isfinite(values).any():
        raise ValueError(f"{path}: no {column} of any of the {len(studies)} studies (the first is {studies[0]!r})")
    return values


def draw_embeddings(
    path: Path, embeddings: Mapping[str, np.ndarray], values: np.ndarray | None = None, name: str = ""
) -> None:
    """Draw a panel for each of `embeddings`, {title: vectors (n, D)}.

    values (n,): numbers that colour the studies, NaN (grey) where unknown; None: one colour. name: of these values.
    """
    figure = new_figure(4.2 * len(embeddings) + 0.8, 4.2)
    panels = figure.subplots(1, len(embeddings), squeeze=False)[0]
    for axes, (title, vectors) in zip(panels, embeddings.items()):
        points, shares = principal_components(vectors)
        if values is None:
            axes.scatter(*points.T, s=12)
        else:
            known = np.isfinite(values)
            axes.scatter(*points[~known].T, s=12, color="lightgrey")
            shown = axes.scatter(*points[known].T, s=12, c=values[known], cmap="viridis")
        axes.locator_params(nbins=5)
        axes.set(title=title, xlabel=f"component 1 ({shares[0]:.0%})", ylabel=f"component 2 ({shares[1]:.0%})")
    if values is not None:
        figure.colorbar(shown, ax=panels, label=name)
    figure.savefig(path, dpi=110)
