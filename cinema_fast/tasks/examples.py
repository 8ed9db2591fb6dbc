"""Labelled examples: frames of a study with what is to be learnt from them, as batches on the device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ..data.loading.augment import model_input
from ..data.loading.augmentation import AS_STORED, Augmentation
from ..data.loading.loader import LoaderError, augmentation_tensors
from ..data.loading.sampler import Draw
from ..data.store.clips import CLIP, ClipStore
from ..data.store.store import CineStore, StoreError


@dataclass(frozen=True)
class Examples:
    """B examples, all with the same views.

    draw: what they are. frames: {view: (B, n, *size) uint8}, the frames that are read together, zeros beyond each one's
    extent. extent: {view: (B, axes) int64}. augment: {view: what is done to each}, as tensors.
    target: what a task wants of them, by view or otherwise (see the tasks).
    """

    draw: Draw
    frames: dict[str, Tensor]
    extent: dict[str, Tensor]
    augment: dict[str, Augmentation]
    target: dict[str, Tensor]

    def to(self, device: torch.device) -> "Examples":
        """The same on a device."""

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        augment = {view: drawn.map(lambda x: x.to(device, non_blocking=True)) for view, drawn in self.augment.items()}
        return replace(
            self, frames=move(self.frames), extent=move(self.extent), augment=augment, target=move(self.target)
        )

    def images(self) -> dict[str, Tensor]:
        """{view: (B, n, *size) float32 in [0, 1]}; frames of an example are moved alike, and each is scaled by itself.

        A clip is one image of one channel.
        """
        return {
            view: _images(frames, self.extent[view], self.augment[view], clip=view == CLIP)
            for view, frames in self.frames.items()
        }


def _images(frames: Tensor, extent: Tensor, augment: Augmentation, *, clip: bool) -> Tensor:
    batch, n, *size = frames.shape
    each = augment.map(lambda values: values.repeat_interleave(n, 0))
    if each.noise_key is not None:
        each = each._replace(noise_key=each.noise_key + torch.arange(n, device=frames.device).repeat(batch))
    moved = model_input(frames.flatten(0, 1), extent.repeat_interleave(n, 0), each, clip=clip)
    return moved.view(batch, n, *size)


def frames_input(frames: np.ndarray, size: tuple[int, ...], device: torch.device, view: str) -> Tensor:
    """Stored frames (B, n, *up to size) uint8 of a view as the model takes them: (B, n, *size) float32 in [0, 1]."""
    batch, n, *have = frames.shape
    padded = np.zeros((batch, n, *size), np.uint8)
    padded[(slice(None), slice(None), *(slice(k) for k in have))] = frames
    extent = torch.tensor(have, device=device).expand(batch, -1)
    return _images(torch.from_numpy(padded).to(device), extent, AS_STORED, clip=view == CLIP)


def read_examples(
    store: CineStore | ClipStore,
    draw: Draw,
    sizes: Mapping[str, tuple[int, ...]],
    *,
    frames_of: Callable[[str, str, float], Sequence[int]],
    target_of: Callable[[str, Mapping[str, Sequence[int]]], dict[str, np.ndarray]],
) -> Examples:
    """Read the examples of a draw.

    Args:
        sizes: {view: the model's image size}.
        frames_of: (study, view, phase) -> the frames that are read together; unused for clips.
        target_of: (study, {view: its frames}) -> what is to be learnt from them; maps as the frames lie in the store.

    Raises:
        LoaderError: names the study and what is wrong with its files.
    """
    n_examples, pixels, extent = len(draw.ids), {}, {}
    targets: list[dict[str, np.ndarray]] = []
    for sample, study in enumerate(draw.ids):
        shown = {}
        try:
            for view in draw.views:
                size = sizes[view]
                if view == CLIP:
                    frames = store.read_clip(study, int(draw.plane[sample]), 0.0, size)[None]
                else:
                    shown[view] = frames_of(study, view, float(draw.phase[sample]))
                    frames = store.read_frames(study, view, shown[view])
                have = frames.shape[1:]
                if len(have) != len(size) or any(n > most for n, most in zip(have, size)):
                    raise StoreError(f"{view} frames of {have} do not fit the model's size {size}")
                if view not in pixels:
                    pixels[view] = np.zeros((n_examples, len(frames), *size), np.uint8)
                    extent[view] = torch.zeros((n_examples, len(size)), dtype=torch.int64)
                pixels[view][(sample, slice(None), *(slice(n) for n in have))] = frames
                extent[view][sample] = torch.tensor(have)
            targets.append(target_of(study, shown))
        except (StoreError, OSError) as error:
            raise LoaderError(f"study {study}: {error}") from error
    return Examples(
        draw,
        {view: torch.from_numpy(values) for view, values in pixels.items()},
        extent,
        augmentation_tensors(draw),
        {name: torch.from_numpy(_stacked([t[name] for t in targets], sizes.get(name))) for name in targets[0]},
    )


def _stacked(arrays: list[np.ndarray], size: tuple[int, ...] | None) -> np.ndarray:
    """Targets of a batch; maps are padded with zeros at the end of each axis to the view's size."""
    if size is None or arrays[0].ndim != len(size):
        return np.stack(arrays)
    out = np.zeros((len(arrays), *size), arrays[0].dtype)
    for row, array in zip(out, arrays):
        row[tuple(slice(n) for n in array.shape)] = array
    return out


def fixed_draws(
    views_of: Mapping[str, tuple[str, ...]],
    phases: Sequence[float],
    *,
    batch_size: int,
    frames_of: Callable[[str, str, float], Sequence[int]],
    planes: Mapping[str, int] | None = None,
) -> Iterator[Draw]:
    """Each study at each of the phases, not augmented, in batches of one set of views, for validation.

    Args:
        frames_of: as of `read_examples`; of phases that show the same frames the first alone is drawn.
        planes: {study: its image planes}, all of which are drawn, where a model reads clips; else None.
    """
    order = sorted((views, study) for study, views in views_of.items())
    for views, members in groupby(order, key=lambda member: member[0]):
        items: list[tuple[str, float, int]] = []
        for _, study in members:
            if planes:
                items += [(study, 0.0, plane) for plane in range(planes[study])]
                continue
            shown = {tuple(frames_of(study, view, phase) for view in views): phase for phase in reversed(phases)}
            items += [(study, phase, 0) for phase in sorted(shown.values())]
        for start in range(0, len(items), batch_size):
            ids, phase, plane = zip(*items[start : start + batch_size])
            yield Draw(
                step=0,
                ids=ids,
                views=views,
                epoch=np.zeros(len(ids), np.int64),
                phase=np.array(phase),
                augment=dict.fromkeys(views, AS_STORED),
                slot=np.arange(len(ids)),
                plane=np.array(plane),
            )
