"""One vector per study, by a pre-trained encoder.

Every image of a study is encoded as a whole, without mask and augmentation. A view's vector is the mean of its tokens,
without those that hold only padding. Then:

    HeartMAE  an image is a clip that starts at the first frame; mean over the planes of a view, then over the views
    CineMA    an image is one time point, all views together; mean over the views, then over the time points PHASES
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..common.views import CLIP
from ..data.loading.augment import stored_input
from ..data.loading.loader import LoaderError, read_ahead
from ..data.store.clips import ClipStore
from ..data.store.store import CineStore, StoreError
from ..methods.mae_evaluation import fixed_batches
from ..models.cinema import CineMA
from ..models.config import CineMAConfig
from ..models.precision import autocast


@dataclass(frozen=True)
class Image:
    """One input of the encoder, and its weight in the study's vector (the weights of a study sum to 1).

    frames: {view: (*size) uint8}; extent: {view: (axes,) int64}, the size without padding.
    """

    study: str
    frames: dict[str, Tensor]
    extent: dict[str, Tensor]
    share: float


@dataclass(frozen=True)
class Embedding:
    """The vector of a study: float32 (D,), the store's views that were encoded, and how many clips or time points."""

    study: str
    vector: np.ndarray
    views: tuple[str, ...]
    n_clips: int


def read_images(store: CineStore | ClipStore, config: CineMAConfig, study: str) -> list[Image]:
    """Every image of a study. Raises LoaderError, StoreError or OSError where one cannot be read."""
    if not any(view in config.views for view in store.views(study)):
        raise StoreError(f"{store.path} has no {' or '.join(config.views)} of it")
    if CLIP in config.views:
        size = config.image_size[CLIP]
        views = views_of(store, config, study)
        clips = [torch.from_numpy(store.read_clips(study, view, 0.0, size)) for view in views]
        extent = torch.tensor(size)
        return [
            Image(study, {CLIP: clip}, {CLIP: extent}, 1 / (len(views) * len(of_view)))
            for of_view in clips
            for clip in of_view
        ]
    batches = list(fixed_batches(store, config, [study], batch_size=1))
    share = 1 / len(batches)
    return [
        Image(study, {v: x[0] for v, x in batch.frames.items()}, {v: x[0] for v, x in batch.extent.items()}, share)
        for batch in batches
    ]


def views_of(store: CineStore | ClipStore, config: CineMAConfig, study: str) -> tuple[str, ...]:
    """The store's views of a study that are encoded for its vector."""
    if CLIP in config.views:
        return tuple(dict.fromkeys(plane.view for plane in store.planes(study)))
    return tuple(view for view in store.views(study) if view in config.views)


@torch.no_grad()
def encode_images(model: CineMA, images: Sequence[Image], *, device: torch.device, precision: torch.dtype) -> Tensor:
    """(B, D) float32 on the CPU: the mean over the views of each view's mean token. All images have the same views."""
    inputs, intensity, inside = {}, {}, {}
    for view in images[0].frames:
        extent = torch.stack([image.extent[view] for image in images]).to(device)
        frames = torch.stack([image.frames[view] for image in images]).to(device)
        inputs[view], intensity[view] = stored_input(frames, extent)
        inside[view] = _not_padding(model.config, view, extent)
    with autocast(device, precision):
        features = model.encode(inputs, intensity)
    means = [
        (features[view].float() * here[..., None]).sum(1) / here.sum(1, keepdim=True) for view, here in inside.items()
    ]
    return torch.stack(means).mean(0).cpu()


def _not_padding(config: CineMAConfig, view: str, extent: Tensor) -> Tensor:
    """(B, N) float32, 1 for tokens that hold pixels of the image; extent (B, axes)."""
    grid = config.grid(view)
    here = torch.ones(len(extent), *grid, device=extent.device)
    for axis, (n, token) in enumerate(zip(grid, config.token_size(view))):
        along = torch.arange(n, device=extent.device) * token < extent[:, axis, None]
        here = here * along.view(len(extent), *(n if a == axis else 1 for a in range(len(grid))))
    return here.flatten(1)


def embed_studies(
    model: CineMA,
    store: CineStore | ClipStore,
    studies: Sequence[str],
    *,
    batch_size: int,
    device: torch.device,
    precision: torch.dtype,
    workers: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[Embedding], dict[str, str]]:
    """The vectors of `studies`, in their order, and {study that cannot be read: reason}.

    A batch may hold images of several studies, so the bits depend on the studies and the batch size. advance is called
    after each study that was read.
    """
    total = {study: np.zeros(model.config.enc_embed_dim) for study in studies}
    count = dict.fromkeys(studies, 0)
    failures: dict[str, str] = {}

    def read(study: str) -> list[Image] | Exception:
        try:
            return read_images(store, model.config, study)
        except (LoaderError, StoreError, OSError) as error:
            return error

    def read_all() -> Iterator[Image]:
        for images, study in zip(read_ahead(read, studies, workers=workers, ahead=2 * workers), studies):
            if isinstance(images, Exception):
                failures[study] = str(images).removeprefix(f"study {study}: ")
            else:
                yield from images
            advance()

    for batch in _batches(read_all(), batch_size):
        rows = encode_images(model, batch, device=device, precision=precision).double().numpy()
        for image, row in zip(batch, rows):
            total[image.study] += image.share * row
            count[image.study] += 1
    vectors = [
        Embedding(study, total[study].astype(np.float32), views_of(store, model.config, study), count[study])
        for study in studies
        if study not in failures
    ]
    return vectors, failures


def _batches(images: Iterator[Image], size: int) -> Iterator[list[Image]]:
    """Batches of `size` images that have the same views, and at the end the remaining images of each set of views."""
    waiting: dict[tuple[str, ...], list[Image]] = {}
    for image in images:
        views = tuple(image.frames)
        waiting.setdefault(views, []).append(image)
        if len(waiting[views]) == size:
            yield waiting.pop(views)
    yield from waiting.values()
