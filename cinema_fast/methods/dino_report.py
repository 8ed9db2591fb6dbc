"""Pictures of a run of self-distillation: the crops of a step, and where the class token of the teacher looks."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.naming import printable
from ..data.loading.crops import CropRecipe, central_squares, cut_crops, standardised
from ..data.loading.image_choice import Images
from ..data.store.store import CineStore
from ..figures.canvas import new_figure, put_image
from ..models.precision import autocast
from ..models.vit import ViT
from .dino_evaluation import Evaluation, padded, stored_images

ROWS = 4  # images of a picture


def write_report(
    out: Path, vit: ViT, store: CineStore, views: Sequence[str], studies: Sequence[str], recipe: CropRecipe, *,
    step: int, seed: int, device: torch.device, precision: torch.dtype, evaluation: Evaluation | None,
    unreadable: dict[str, str] | None,
) -> list[Path]:
    """Write OUT/report: loss.png, crops.png, attention.png, and evaluation.json where there is an evaluation. Returns
    the pictures.

    vit: in eval mode. studies: images of up to ROWS views of one of these are drawn: of those with the most views, the
    first that can be read. If none can, only loss.png is drawn. step: the crops are those that this step would cut of
    them as the first images of its batch. unreadable, LoaderError: as for `stored_images`.
    """
    folder = out / "report"
    folder.mkdir(exist_ok=True)
    if evaluation:
        (folder / "evaluation.json").write_text(json.dumps(asdict(evaluation), indent=1) + "\n")
    curves = folder / "loss.png"
    draw_curves(curves, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
    order = sorted(studies, key=lambda study: -sum(view in views for view in store.views(study)))
    study, shown = next(stored_images(store, views, order, unreadable), (None, {}))
    if study is None:
        return [curves]
    names = list(shown)
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(ROWS, len(names))).round().astype(int)]
    images = {view: shown[view] for view in chosen}
    pictures = folder / "crops.png", folder / "attention.png"
    draw_crops(pictures[0], study, images, recipe, step=step, seed=seed)
    draw_attention(pictures[1], study, images, vit, device=device, precision=precision)
    return [curves, *pictures]


def draw_curves(path: Path, lines: Sequence[dict]) -> None:
    """Loss, teacher entropy and KL to the mean over steps; of held-out studies k-NN accuracies and feature rank."""
    panels = {"nats": ("loss", "teacher_entropy"), "nats of KL": ("kl_to_mean",),
              "k-NN accuracy": ("knn_view", "knn_plane", "knn_sequence"), "rank": ("feature_rank",)}  # fmt: skip
    panels = {label: names for label, names in panels.items() if any(names[0] in line for line in lines)}
    figure = new_figure(8, 2.4 * len(panels))
    for axes, (label, names) in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels.items()):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            mark = "." if len(points) < 20 else ""  # a single point is no line
            axes.plot(*zip(*points) if points else ([], []), label=name.replace("_", " "), linewidth=1, marker=mark)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
    axes.set_xlabel("step")
    figure.savefig(path, dpi=110)


def draw_crops(
    path: Path, study: str, images: dict[str, Tensor], recipe: CropRecipe, *, step: int, seed: int
) -> None:
    """A row for each image, {view: (X, Y) uint8}: the image and its crops."""
    pixels, extent = padded(list(images.values()))
    each = torch.arange(len(images))
    crops = cut_crops(Images(pixels, extent, each, each), recipe, step=torch.tensor([step]), seed=seed)
    titles = ["global 1", "global 2", *(f"local {n + 1}" for n in range(recipe.n_local))]
    rows = {
        view: [("image", image / 255), *zip(titles, (crop[row, 0] for crop in crops))]
        for row, (view, image) in enumerate(images.items())
    }
    _draw(path, f"study {printable(study)}, crops of step {step + 1}", rows)


@torch.no_grad()
def draw_attention(
    path: Path, study: str, images: dict[str, Tensor], vit: ViT, *, device: torch.device, precision: torch.dtype
) -> None:
    """A row for each image, {view: (X, Y) uint8}: its central square, and for each head of the last block the weights
    with which the class token attends to the patches, from 0 (dark) to the largest of the map."""
    pixels, extent = padded(list(images.values()))
    squares = central_squares(pixels.to(device), extent.to(device), vit.config.image_size)
    with autocast(device, precision):
        weights = vit.last_attention(standardised(squares))[:, :, 0, 1:]
    side = vit.config.image_size // vit.config.patch_size
    maps = weights.unflatten(2, (side, side))
    maps = (maps / maps.amax((2, 3), keepdim=True)).float().cpu()
    rows = {
        view: [("image", squares[row, 0].cpu()), *((f"head {n + 1}", part) for n, part in enumerate(maps[row]))]
        for row, view in enumerate(images)
    }
    _draw(path, f"study {printable(study)}, attention of the class token", rows, cmap="magma")


def _draw(path: Path, title: str, rows: dict[str, list[tuple[str, Tensor]]], cmap: str = "gray") -> None:
    """Rows of (title, pixels (X, Y) in [0, 1]) under their names; cmap: of all but the first of a row."""
    columns = len(next(iter(rows.values())))
    figure = new_figure(1.6 * columns, 1.8 * len(rows) + 0.4)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, row) in zip(grid, rows.items()):
        for axes, (label, pixels) in zip(line, row):
            how = "gray" if axes is line[0] else cmap
            put_image(axes, pixels.numpy(), label if axes in grid[0] else "", vmin=0, vmax=1, cmap=how)
        line[0].set_ylabel(name)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
