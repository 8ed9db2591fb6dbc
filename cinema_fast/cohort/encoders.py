"""How the images of a study are encoded, by the kind of a pre-trained model.

Every image is encoded as a whole, without mask and augmentation. A view's vector is the mean over its images:

    CineMA    an image is one time point of PHASES, all views together; of each view the mean of its tokens
    HeartMAE  an image is a clip of one plane that starts at the first frame; the mean of its tokens
    DINO      an image is one slice at one time point, the largest central square of it; the teacher's class token, the
              mean of its patch tokens, or both. Of a cine the time points are PHASES, of a view of channels all of them

Tokens that hold only padding do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..common.views import CLIP
from ..data.loading.augment import stored_input
from ..data.loading.crops import central_squares, standardised
from ..data.loading.sampler import frame_at
from ..data.store.clips import ClipStore
from ..data.store.store import CineStore, StoreError
from ..methods.mae_evaluation import PHASES, fixed_batches
from ..models.cinema import CineMA
from ..models.config import CineMAConfig, DINOConfig, config_from_dict
from ..models.precision import autocast
from ..models.vit import ViT
from ..models.weights import load_cinema_weights
from ..train.run_info import RunInfo

Tokens = Literal["class", "patches", "both"]
TEACHER = "teacher.backbone."


@dataclass(frozen=True)
class Image:
    """One input of an encoder.

    views: the store's views that it shows. frames: {name: (*size) uint8}; extent: {name: (axes,) int64}, the size
    without padding. share: its weight in the vectors of its views; the weights of a view sum to 1.
    """

    study: str
    views: tuple[str, ...]
    frames: dict[str, Tensor]
    extent: dict[str, Tensor]
    share: float


class Encoder:
    """Reads and encodes the images of one kind of model.

    width: of a vector. wanted: names of the views that the model takes; empty: all. metadata: options of `embed` for
    this kind alone, and their values.
    """

    store: CineStore | ClipStore
    width: int
    wanted: Sequence[str]
    metadata: dict[str, str] = {}  # noqa: RUF012 (never written to)

    def remarks(self) -> Sequence[str]:
        """Lines on images of the store that are left out."""
        return ()

    def build(self, weights: dict[str, Tensor]) -> nn.Module:
        """The model with the weights of a run's checkpoint. Raises ValueError where they do not fit."""
        raise NotImplementedError

    def views(self, study: str) -> tuple[str, ...]:
        """The store's views of a study that are encoded."""
        return tuple(view for view in self.store.views(study) if not self.wanted or view in self.wanted)

    def images(self, study: str) -> list[Image]:
        """Every image of a study, one or more of each of its `views`. Raises LoaderError, StoreError or OSError where
        one cannot be read."""
        raise NotImplementedError

    def encode(
        self, model: nn.Module, frames: dict[str, Tensor], extent: dict[str, Tensor], precision: torch.dtype
    ) -> Tensor:
        """Images of the same views, frames (B, *size) and extent (B, axes), to vectors (B, views, width) float32."""
        raise NotImplementedError


def encoder_of(info: RunInfo, cines: CineStore, tokens: Tokens) -> Encoder:
    """The encoder of a run of `pretrain`, over a store. Raises ValueError where one of the two does not fit, and for
    `tokens` that have no effect."""
    config, views = config_from_dict(info.model), tuple(info.options["views"])
    if isinstance(config, DINOConfig):
        return ImageEncoder(config, cines, views, tokens)
    if tokens != "class":
        raise ValueError(f"--tokens {tokens} has no effect on a run of {info.options['preset']}, whose vectors "
                         "are always means of patch tokens: leave it out")  # fmt: skip
    if CLIP in config.views:
        return ClipEncoder(config, ClipStore(cines, views, min_frames=info.min_frames))
    return FrameEncoder(config, cines)


class MAEEncoder(Encoder):
    """What CineMA and HeartMAE have in common."""

    def __init__(self, config: CineMAConfig, store: CineStore | ClipStore):
        self.config, self.store, self.width, self.wanted = config, store, config.enc_embed_dim, config.views

    def build(self, weights: dict[str, Tensor]) -> CineMA:
        model = CineMA(self.config)
        load_cinema_weights(model, weights)
        return model

    def encode(
        self, model: CineMA, frames: dict[str, Tensor], extent: dict[str, Tensor], precision: torch.dtype
    ) -> Tensor:
        ready = {name: stored_input(stored, extent[name]) for name, stored in frames.items()}
        inputs, intensity = ({name: pair[part] for name, pair in ready.items()} for part in (0, 1))
        with autocast(next(iter(extent.values())).device, precision):
            features = model.encode(inputs, intensity)
        inside = {name: not_padding(self.config, name, extent[name]) for name in frames}
        means = [
            (features[name].float() * here[..., None]).sum(1) / here.sum(1, keepdim=True)
            for name, here in inside.items()
        ]
        return torch.stack(means, 1)


class FrameEncoder(MAEEncoder):
    """CineMA."""

    store: CineStore

    def images(self, study: str) -> list[Image]:
        views = _some(self.views(study), self.store, self.wanted)
        batches = list(fixed_batches(self.store, self.config, [study], batch_size=1))
        return [
            Image(study, views, _first(batch.frames, views), _first(batch.extent, views), 1 / len(batches))
            for batch in batches
        ]


class ClipEncoder(MAEEncoder):
    """HeartMAE."""

    store: ClipStore

    def remarks(self) -> Sequence[str]:
        return self.store.remarks()

    def views(self, study: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(plane.view for plane in self.store.planes(study)))

    def images(self, study: str) -> list[Image]:
        size, found = self.config.image_size[CLIP], []
        for view in _some(self.views(study), self.store, self.wanted):
            clips = torch.from_numpy(self.store.read_clips(study, view, 0.0, size))
            found += [Image(study, (view,), {CLIP: clip}, {CLIP: torch.tensor(size)}, 1 / len(clips)) for clip in clips]
        return found


class ImageEncoder(Encoder):
    """DINO: the teacher's backbone."""

    def __init__(self, config: DINOConfig, store: CineStore, views: Sequence[str], tokens: Tokens):
        self.config, self.store, self.tokens, self.wanted = config.vit, store, tokens, views
        self.width = self.config.embed_dim * (2 if tokens == "both" else 1)
        self.metadata = {"tokens": tokens}

    def build(self, weights: dict[str, Tensor]) -> ViT:
        model = ViT(self.config)
        of_teacher = {name.removeprefix(TEACHER): t for name, t in weights.items() if name.startswith(TEACHER)}
        load_cinema_weights(model, of_teacher)
        return model

    def images(self, study: str) -> list[Image]:
        found = []
        for view in _some(self.views(study), self.store, self.wanted):
            info = self.store.info(study, view)
            n = info.shape[0]
            times = range(n) if info.channels else dict.fromkeys(frame_at(phase, n) for phase in PHASES)
            frames = torch.from_numpy(self.store.read_frames(study, view, times))
            slices = frames.unsqueeze(1) if frames.ndim == 3 else frames.movedim(3, 1)
            slices = slices.flatten(0, 1)
            extent = torch.tensor(slices.shape[1:])
            found += [Image(study, (view,), {view: one}, {view: extent}, 1 / len(slices)) for one in slices]
        return found

    def encode(
        self, model: ViT, frames: dict[str, Tensor], extent: dict[str, Tensor], precision: torch.dtype
    ) -> Tensor:
        (view,) = frames
        squares = central_squares(frames[view], extent[view], self.config.image_size)
        with autocast(squares.device, precision):
            found = model(standardised(squares))
        parts = {"class": found["cls"].float(), "patches": found["patches"].float().mean(1)}
        chosen = parts.values() if self.tokens == "both" else [parts[self.tokens]]
        return torch.cat(list(chosen), 1).unsqueeze(1)


def not_padding(config: CineMAConfig, view: str, extent: Tensor) -> Tensor:
    """(B, N) float32, 1 for tokens that hold pixels of the image; extent (B, axes)."""
    grid = config.grid(view)
    here = torch.ones(len(extent), *grid, device=extent.device)
    for axis, (n, token) in enumerate(zip(grid, config.token_size(view))):
        along = torch.arange(n, device=extent.device) * token < extent[:, axis, None]
        here = here * along.view(len(extent), *(n if a == axis else 1 for a in range(len(grid))))
    return here.flatten(1)


def _some(views: tuple[str, ...], store: CineStore | ClipStore, wanted: Sequence[str]) -> tuple[str, ...]:
    """The views, or StoreError where there is none."""
    if not views:
        raise StoreError(f"{store.path} has no {' or '.join(wanted)} of it")
    return views


def _first(by_view: dict[str, Tensor], views: tuple[str, ...]) -> dict[str, Tensor]:
    """The only sample of each view, in the order of `views`."""
    return {view: by_view[view][0] for view in views}
