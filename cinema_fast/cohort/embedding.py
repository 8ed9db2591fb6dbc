"""The vectors of studies, by a pre-trained encoder: a study's is the mean over its views (`encoders.py`)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..data.loading.loader import LoaderError, read_ahead
from ..data.store.store import StoreError
from .encoders import Encoder, Image


@dataclass(frozen=True)
class Embedding:
    """The vectors of a study: {the store's view: float64 (D,)}, and how many images were encoded for them."""

    study: str
    by_view: dict[str, np.ndarray]
    n_images: int

    @property
    def vector(self) -> np.ndarray:
        """Float32 (D,): the mean over the views."""
        return np.mean(list(self.by_view.values()), axis=0).astype(np.float32)


@torch.no_grad()
def encode_images(
    encoder: Encoder, model: nn.Module, images: Sequence[Image], *, device: torch.device, precision: torch.dtype
) -> Tensor:
    """(B, views, D) float32 on the CPU, of images whose frames have the same names and sizes."""
    frames, extent = (
        {name: torch.stack([part[name] for part in parts]).to(device) for name in parts[0]}
        for parts in ([image.frames for image in images], [image.extent for image in images])
    )
    return encoder.encode(model, frames, extent, precision).cpu()


def embed_studies(
    encoder: Encoder,
    model: nn.Module,
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
    total = {study: {view: np.zeros(encoder.width) for view in encoder.views(study)} for study in studies}
    count = dict.fromkeys(studies, 0)
    failures: dict[str, str] = {}

    def read(study: str) -> list[Image] | Exception:
        try:
            return encoder.images(study)
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
        rows = encode_images(encoder, model, batch, device=device, precision=precision).double().numpy()
        for image, by_view in zip(batch, rows):
            for view, row in zip(image.views, by_view):
                total[image.study][view] += image.share * row
            count[image.study] += 1
    return [Embedding(s, total[s], count[s]) for s in studies if s not in failures], failures


def _batches(images: Iterator[Image], size: int) -> Iterator[list[Image]]:
    """Batches of `size` images that can be stacked, and at the end the remaining images of each kind."""
    waiting: dict[tuple, list[Image]] = {}
    for image in images:
        kind = tuple((name, frame.shape) for name, frame in image.frames.items())
        waiting.setdefault(kind, []).append(image)
        if len(waiting[kind]) == size:
            yield waiting.pop(kind)
    yield from waiting.values()
