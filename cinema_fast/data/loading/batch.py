"""A batch of stored images, and its conversion to the input of the model."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from ...common.views import CLIP
from ...kernels.augment_images import move_maps
from ...kernels.augment_images.torch_form import beyond, change_brightness_, min_max
from .augment import model_input, stored_input
from .augmentation import AS_STORED, Augmentation
from .sampler import Draw


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    draw: its samples; where a study was replaced, `ids`, `phase`, `plane` and `augment` are the replacement's.
    frames: {view: (B, *size) uint8}, zeros beyond each frame's extent, or {"clip": (B, T, X, Y) uint8}; of labelled
        studies (B, n, *size), n frames that are read together, of clips one.
    extent: {view: (B, axes) int64}.
    augment: {view: augmentation of its images}, as tensors. slot (B,) int64: as in `Draw`.
    notes: a line for each study that could not be read.
    motion: the stored motion maps, if requested, padded like the frames: {view: (B, *size) uint8}, for clips
        {"clip": (B, X, Y) uint8}.
    replaced: the study of each note.
    target: the targets of labelled studies, by view or other name (see the tasks).
    """

    draw: Draw
    frames: dict[str, Tensor]
    extent: dict[str, Tensor]
    augment: dict[str, Augmentation]
    slot: Tensor
    notes: tuple[str, ...] = ()
    motion: dict[str, Tensor] = field(default_factory=dict)
    replaced: tuple[str, ...] = ()
    target: dict[str, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with `change` applied to each tensor."""
        frames, extent, motion, target = (
            {name: change(tensor) for name, tensor in part.items()}
            for part in (self.frames, self.extent, self.motion, self.target)
        )
        augment = {view: drawn.map(change) for view, drawn in self.augment.items()}
        return replace(
            self, frames=frames, extent=extent, augment=augment, slot=change(self.slot), motion=motion, target=target
        )

    def tensors(self) -> list[Tensor]:
        """All its tensors, in an order that depends only on which there are."""
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)
        return found

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; the copy from pinned memory does not wait."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def images(self, *, joint: bool = False) -> dict[str, Tensor]:
        """{view: (B, n, *size) float32 in [0, 1]} of labelled studies.

        All frames of a study are moved alike, and each is scaled by its own range, or with `joint` all by their common
        one. A clip is one image of one channel.
        """
        return {
            view: frames_input(frames, self.extent[view], self.augment[view], clip=view == CLIP, joint=joint)
            for view, frames in self.frames.items()
        }


def frames_input(
    frames: Tensor, extent: Tensor, augment: Augmentation, *, clip: bool, joint: bool = False
) -> Tensor:
    """Stored frames (B, n, *size) uint8 as the model takes them: (B, n, *size) float32 in [0, 1]; see `model_input`.

    joint: the frames of a view have one range and one gamma, and noise of their own, as the frames of a clip.
    """
    batch, n, *size = frames.shape
    if joint and not clip:
        return _joint_input(frames, extent, augment)
    each = augment.map(lambda values: values.unsqueeze(1).expand(-1, n, *values.shape[1:]).flatten(0, 1))
    if each.noise_key is not None:
        each = each._replace(noise_key=each.noise_key + torch.arange(n, device=frames.device).repeat(batch))
    extent = extent.unsqueeze(1).expand(-1, n, -1).flatten(0, 1)
    return model_input(frames.flatten(0, 1), extent, each, clip=clip).view(batch, n, *size)


def _joint_input(frames: Tensor, extent: Tensor, augment: Augmentation) -> Tensor:
    """`frames_input` with one range for the frames of a view. Those of single slices are the frames of a clip; stacks
    are only moved by a kernel, which interpolates them linearly in any case."""
    _, n, *size = frames.shape
    if len(size) == 2:
        return model_input(frames, nn.functional.pad(extent, (1, 0), value=n), augment, clip=True)[:, 0]
    moves = {name: getattr(augment, name) for name in ("zoom", "angle", "shift", "flip")}
    each = {name: None if part is None else part.repeat_interleave(n, 0) for name, part in moves.items()}
    moved = move_maps(frames.flatten(0, 1), extent.repeat_interleave(n, 0), **each).view(frames.shape)
    padding = beyond(extent, size).unsqueeze(1).expand(frames.shape)
    brightness = {name: getattr(augment, name) for name in ("gamma", "noise", "noise_key")}
    return change_brightness_(min_max(moved, padding), padding, **brightness)


def batch_input(batch: Batch, *, as_stored: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """An unlabelled batch as the model takes it: its images and, where they stay in 8 bits, their intensity.

    Args:
        batch: on the device. as_stored: if the images are only scaled, keep them in 8 bits and let the kernels scale
            them; else scale them here.

    Returns:
        {view: (B, 1, *size)}, float32 in [0, 1] and None; or uint8 and {view: (B, 2) offset and scale} (see `CineMA`).
    """
    if as_stored and all(part is None for drawn in batch.augment.values() for part in drawn):
        pairs = {view: stored_input(frames, batch.extent[view]) for view, frames in batch.frames.items()}
        return {view: image for view, (image, _) in pairs.items()}, {view: pair[1] for view, pair in pairs.items()}
    images = {
        view: model_input(frames, batch.extent[view], batch.augment[view], clip=view == CLIP)
        for view, frames in batch.frames.items()
    }
    return images, None


def padded_input(
    frames: np.ndarray, size: tuple[int, ...], device: torch.device, view: str, *, joint: bool = False
) -> Tensor:
    """Stored frames (B, n, *up to size) uint8 of a view as the model takes them: (B, n, *size) float32 in [0, 1].
    joint: as for `frames_input`."""
    batch, n, *have = frames.shape
    padded = np.zeros((batch, n, *size), np.uint8)
    padded[(..., *(slice(k) for k in have))] = frames
    extent = torch.tensor(have, device=device).expand(batch, -1)
    return frames_input(torch.from_numpy(padded).to(device), extent, AS_STORED, clip=view == CLIP, joint=joint)
