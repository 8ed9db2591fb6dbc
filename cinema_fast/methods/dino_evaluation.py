"""Quality of the class token during self-distillation: k-NN accuracy on held-out studies, and the rank of the features.

An image is the middle slice of a view's first frame, the largest central square of it. Features are the teacher's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..common.sequences import sequence_of
from ..common.views import plane_of
from ..data.loading.crops import central_squares, standardised
from ..data.loading.loader import LoaderError
from ..data.store.store import CineStore, StoreError
from ..metrics.knn import weighted_knn
from ..models.precision import autocast
from ..models.vit import ViT

STUDIES = 64  # at most so many of either part are read
BATCH = 64


@dataclass(frozen=True)
class Evaluation:
    """studies: number of evaluated studies. knn_view, knn_plane, knn_sequence: share of their images whose view, plane
    and sequence the nearest training images give. feature_rank: of their features, see `feature_rank`."""

    studies: int
    knn_view: float
    knn_plane: float
    knn_sequence: float
    feature_rank: float

    def __str__(self) -> str:
        return (
            f"k-NN accuracy of the view {self.knn_view:.3f}, plane {self.knn_plane:.3f}, sequence "
            f"{self.knn_sequence:.3f}; feature rank {self.feature_rank:.4g}"
        )


def stored_images(
    store: CineStore, views: Sequence[str], studies: Sequence[str], unreadable: dict[str, str] | None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(study, {view: image (X, Y) uint8}) of the studies, with those of their views that are among `views`.

    unreadable: a dict that receives {study: why} for studies that cannot be read, which are left out. None: such a
    study raises LoaderError.
    """
    for study in studies:
        shown = {}
        try:
            for view in (view for view in store.views(study) if view in views):
                frame = torch.from_numpy(store.read_frame(study, view, 0))
                shown[view] = frame if frame.ndim == 2 else frame[..., frame.shape[-1] // 2]
        except (StoreError, OSError) as error:
            if unreadable is None:
                raise LoaderError(f"study {study}: {error}") from error
            unreadable[study] = str(error)
            continue
        yield study, shown


def padded(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Images (X, Y) uint8 of any sizes as pixels (N, X, Y) uint8, zeros beyond their extent (N, 2) int64."""
    extent = torch.tensor([image.shape for image in images])
    pixels = torch.zeros(len(images), *extent.amax(0).tolist(), dtype=torch.uint8)
    for place, image in zip(pixels, images):
        place[: image.shape[0], : image.shape[1]] = image
    return pixels, extent


@torch.no_grad()
def class_tokens(
    vit: ViT, images: Sequence[Tensor], *, device: torch.device, precision: torch.dtype
) -> Tensor:
    """(N, D) float32 on the CPU, of images (X, Y) uint8 of any sizes."""
    found = []
    for start in range(0, len(images), BATCH):
        pixels, extent = padded(images[start : start + BATCH])
        squares = central_squares(pixels.to(device), extent.to(device), vit.config.image_size)
        with autocast(device, precision):
            found.append(vit(standardised(squares))["cls"].float().cpu())
    return torch.cat(found)


def knn_accuracy(features: Tensor, labels: Sequence[str], test: Tensor, expected: Sequence[str]) -> float:
    """Share of `test` (M, D) whose label is that of most votes of the nearest `features` (N, D)."""
    names, classes = np.unique(labels, return_inverse=True)
    votes = weighted_knn(features.numpy(), np.eye(len(names))[classes], test.numpy())
    return float((names[votes.argmax(1)] == np.array(expected)).mean())


def feature_rank(features: Tensor) -> float:
    """Effective rank of features (N, D): the exponential of the entropy of their singular values (Garrido et al.,
    "RankMe", ICML 2023). 1: all on a line; at most min(N, D)."""
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(share).sum().exp())


def evaluate(
    vit: ViT, store: CineStore, views: Sequence[str], training: Sequence[str], held_out: Sequence[str], *,
    device: torch.device, precision: torch.dtype, unreadable: dict[str, str] | None = None,
) -> Evaluation | None:
    """k-NN accuracies on the held-out studies, by the training ones, and the rank of the held-out features.

    vit: evaluated in eval mode, and left in the mode that it has. unreadable: as for `stored_images`; None is returned
    where no study of either part can be read. Raises LoaderError as `stored_images`.
    """
    parts, n, mode = [], 0, vit.training
    for studies in (training, held_out):
        every = -(-len(studies) // STUDIES)
        read = [shown for _, shown in stored_images(store, views, studies[::every], unreadable)]
        parts.append([(view, image) for shown in read for view, image in shown.items()])
        n = len(read)
    if not all(parts):
        return None
    names, test_names = ([view for view, _ in part] for part in parts)
    vit.eval()
    try:
        features, test = (
            class_tokens(vit, [image for _, image in part], device=device, precision=precision) for part in parts
        )
    finally:
        vit.train(mode)

    def accuracy(label_of) -> float:
        return knn_accuracy(features, list(map(label_of, names)), test, list(map(label_of, test_names)))

    return Evaluation(
        n,
        knn_view=accuracy(lambda view: view),
        knn_plane=accuracy(lambda view: plane_of(view) or view),
        knn_sequence=accuracy(lambda view: sequence_of(view) or "cine"),
        feature_rank=feature_rank(test),
    )
