"""Quality of the class token during self-distillation: k-NN accuracy on held-out studies, and the rank of the features.

An image is the middle slice of a view's first frame, the largest central square of it. Features are the teacher's.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..common.sequences import sequence_of
from ..common.views import plane_of
from ..data.loading.crops import central_squares
from ..data.store.store import CineStore, StoreError
from ..metrics.knn import weighted_knn
from ..models.precision import autocast
from ..models.vit import ViT

STUDIES = 64  # at most so many of either part are read
BATCH = 64


def stored_images(
    store: CineStore, views: Sequence[str], studies: Sequence[str]
) -> Iterator[tuple[str, str, Tensor]]:
    """(study, view, image (X, Y) uint8) of the studies; those that cannot be read are left out."""
    for study in studies:
        for view in (view for view in store.views(study) if view in views):
            try:
                frame = torch.from_numpy(store.read_frame(study, view, 0))
            except (StoreError, OSError):
                continue
            yield study, view, frame if frame.ndim == 2 else frame[..., frame.shape[-1] // 2]


@torch.no_grad()
def class_tokens(
    vit: ViT, images: Sequence[Tensor], *, device: torch.device, precision: torch.dtype
) -> Tensor:
    """(N, D) float32 on the CPU, of images (X, Y) uint8 of any sizes."""
    found = []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        extent = torch.tensor([image.shape for image in part])
        padded = torch.zeros(len(part), *extent.amax(0).tolist(), dtype=torch.uint8)
        for place, image in zip(padded, part):
            place[: image.shape[0], : image.shape[1]] = image
        squares = central_squares(padded.to(device), extent.to(device), vit.config.image_size)
        with autocast(device, precision):
            found.append(vit(squares)["cls"].float().cpu())
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
    device: torch.device, precision: torch.dtype,
) -> dict[str, float]:
    """"knn_view", "knn_plane" and "knn_sequence": k-NN accuracies on the held-out studies, by the training ones;
    "feature_rank" of the held-out features."""
    parts = []
    for studies in (training, held_out):
        step = -(-len(studies) // STUDIES)
        read = list(stored_images(store, views, studies[::step]))
        parts.append((class_tokens(vit, [image for *_, image in read], device=device, precision=precision),
                      [view for _, view, _ in read]))
    (features, names), (test, expected) = parts
    kinds = {
        "view": lambda view: view, "plane": lambda view: plane_of(view) or view,
        "sequence": lambda view: sequence_of(view) or "cine",
    }
    found = {
        f"knn_{kind}": knn_accuracy(features, list(map(of, names)), test, list(map(of, expected)))
        for kind, of in kinds.items()
    }
    return found | {"feature_rank": feature_rank(test)}
