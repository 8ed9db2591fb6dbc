"""The images of a step's studies: of each study a few views, of each stack of slices one slice."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...common.views import CLIP
from ...kernels.philox import philox4x32

# Word 3 of the Philox counter, as in `sampler`, which takes the values from 0x8000_0000, and `crops`, from 0x8000_0200.
FOR_IMAGES = 0x8000_0100


class Images(NamedTuple):
    """M images of each of B studies, study by study.

    pixels (B M, X, Y) uint8: zeros beyond the extent; X and Y are the largest over the views. extent (B M, 2) int64.
    view (B M,) int64: index into the views in the batch's order.
    number (B M,) int64: slot * M + m, the image's number in the step's global batch.
    """

    pixels: Tensor
    extent: Tensor
    view: Tensor
    number: Tensor


def choose_images(
    frames: dict[str, Tensor], extent: dict[str, Tensor], slot: Tensor, *, step: Tensor, seed: int, per_study: int
) -> Images:
    """Choose `per_study` images of each study: a pure function of (seed, step, slot).

    A study's views come in a random order without repetition, in a new one when all have come, so that each view is
    equally likely, whatever its number of slices. Of a stack one slice is drawn, uniformly among those of its extent,
    and anew in each order. Random words: Philox with counter (order * views + view, slot, step, purpose); word 0 sorts
    the views, word 1 draws the slice.

    Args:
        frames: {view: (B, X, Y) or, of stacks, (B, X, Y, Z) uint8}, padded with zeros at the end of each axis.
        extent: {view: (B, 2 or 3) int64}, the true size of each frame, at least 1.
        slot (B,) int64: the study's index in the step's global batch. step (1,) int64, on the device of the frames.
        seed: 64-bit key. per_study: images of a study, M.

    Raises:
        ValueError: no view, clips, `per_study` below 1, shapes or dtypes that do not fit together.
    """
    _check(frames, extent, slot, step, per_study)
    batch, n_views, device = len(slot), len(frames), slot.device
    rounds = -(-per_study // n_views)
    drawn = torch.arange(rounds * n_views, device=device)
    order_word, slice_word, _, _ = philox4x32(seed, drawn, slot.view(-1, 1), step, FOR_IMAGES)
    order = order_word.view(batch, rounds, n_views).argsort(dim=-1, stable=True)
    view = order.flatten(1)[:, :per_study]
    row = drawn[:per_study] // n_views * n_views + view  # (B, M), of the (round, view) that a study's image comes from
    study = torch.arange(batch, device=device).view(-1, 1)

    size = [max(part.shape[axis] for part in frames.values()) for axis in (1, 2)]
    slice_word = slice_word.view(batch, rounds, n_views)
    shown = []
    for number, (name, stored) in enumerate(frames.items()):
        if stored.ndim == 4:
            slices = slice_word[:, :, number] * extent[name][:, 2:] >> 32  # (B, rounds)
            planes = stored.movedim(3, 1)[study, slices]
        else:
            planes = stored.unsqueeze(1).expand(-1, rounds, -1, -1)
        shown.append(nn.functional.pad(planes, (0, size[1] - planes.shape[3], 0, size[0] - planes.shape[2])))
    pixels = torch.stack(shown, 2).view(batch * rounds * n_views, *size)
    planes_extent = torch.stack([extent[name][:, :2] for name in frames], 1)
    return Images(
        pixels.index_select(0, (study * (rounds * n_views) + row).flatten()),
        planes_extent[study, view].flatten(0, 1),
        view.flatten(),
        (slot.view(-1, 1) * per_study + drawn[:per_study]).flatten(),
    )


def _check(
    frames: dict[str, Tensor], extent: dict[str, Tensor], slot: Tensor, step: Tensor, per_study: int
) -> None:
    if not frames or CLIP in frames:
        raise ValueError(f"choose_images: frames must hold views of images, and no clips; got {list(frames)}")
    if per_study < 1:
        raise ValueError(f"choose_images: per_study must be at least 1, got {per_study}")
    for name, whole in (("slot", slot), ("step", step)):
        if whole.ndim != 1 or whole.dtype != torch.int64:
            raise ValueError(f"choose_images: {name} must be int64 of one axis, got {whole.dtype} {tuple(whole.shape)}")
    if len(step) != 1:
        raise ValueError(f"choose_images: step must be one number, got {len(step)}")
    for view, stored in frames.items():
        if stored.ndim not in (3, 4) or stored.dtype != torch.uint8 or len(stored) != len(slot):
            raise ValueError(
                f"choose_images: frames[{view!r}] must be uint8 ({len(slot)}, X, Y[, Z]), one of each slot, got "
                f"{stored.dtype} {tuple(stored.shape)}"
            )
        if view not in extent or extent[view].shape != (len(slot), stored.ndim - 1):
            have = tuple(extent[view].shape) if view in extent else "none"
            raise ValueError(
                f"choose_images: extent[{view!r}] must be ({len(slot)}, {stored.ndim - 1}) for frames "
                f"{tuple(stored.shape)}, got {have}"
            )
