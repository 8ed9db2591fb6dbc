"""augment_images and move_maps through the C library that `setup.py` builds from csrc/augment_images_cpu.cpp."""

import ctypes

import torch
from torch import Tensor

from ..backend import launching
from ..native import load_library

LIBRARY, PROBLEM = load_library("augment_images")  # at import, so that torch.compile does not trace it


class _Request(ctypes.Structure):
    """The same fields as `Request` in csrc/augment_images_cpu.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("frames", "out", "extent", "zoom", "angle", "shift", "flip")),
        *((name, ctypes.c_void_p) for name in ("gamma", "noise", "noise_key")),
        *((name, ctypes.c_int64) for name in ("b", "t", "x", "y", "z")),
        *((name, ctypes.c_int32) for name in ("volumes", "maps", "threads")),
    )


def unsupported(frames: Tensor) -> list[str]:
    """Why the library cannot run on these frames; empty where it can."""
    if frames.device.type != "cpu":
        return [f"needs CPU tensors, got {frames.device.type}"]
    return [PROBLEM] if PROBLEM else []


@torch.library.custom_op("cinema_fast::augment_images_native", mutates_args=())
def augment(
    frames: Tensor, extent: Tensor, zoom: Tensor | None, angle: Tensor | None, shift: Tensor | None,
    flip: Tensor | None, gamma: Tensor | None, noise: Tensor | None, noise_key: Tensor | None, clip: bool, maps: bool,
) -> Tensor:  # fmt: skip
    """`augment_images`, or `move_maps` where `maps` is true; the arguments are already checked."""
    frames, out = frames.contiguous(), torch.empty(frames.shape)
    if not out.numel():
        return out
    ones = torch.ones(len(frames), 1, dtype=torch.int64)
    extent = torch.cat([extent] if clip else [ones, extent], 1)
    extent = torch.cat([extent, ones], 1)[:, :4].contiguous()
    t, x, y, z = (*frames.shape[1:], 1) if clip else (1, *frames.shape[1:], 1)[:4]
    parameters = [
        extent, *(None if p is None else p.double().contiguous() for p in (zoom, angle, shift)),
        None if flip is None else flip.contiguous(),
        *(None if p is None else p.double().contiguous() for p in (gamma, noise)),
        None if noise_key is None else noise_key.contiguous(),
    ]  # fmt: skip
    pointers = (None if p is None else p.data_ptr() for p in (frames, out, *parameters))
    volumes = frames.ndim == 4 and not clip
    request = _Request(*pointers, len(frames), t, x, y, z, volumes, maps, torch.get_num_threads())
    with launching("move_maps" if maps else "augment_images", frames):
        if LIBRARY.augment_images(ctypes.byref(request)):
            raise MemoryError("augment_images: out of memory for the tables of the axes")
    return out


@augment.register_fake
def _(frames, extent, zoom, angle, shift, flip, gamma, noise, noise_key, clip, maps):
    return torch.empty_like(frames, dtype=torch.float32, memory_format=torch.contiguous_format)
