"""augment_images: from stored 8-bit frames to the model's input; move_maps: the same geometry for motion maps.

The steps, in this order: flips, zoom, rotation and shift about the image's centre, at the same size and with zeros from
outside the image; min-max scaling of each image to [0, 1]; gamma; noise, clamped to [0, 1]; zeros at the end of each
axis up to the model's size. The parameters are arguments, which the sampler draws. Without rotation and shift, images
of two axes are interpolated bicubically and those of three axes trilinearly. With either, all images of the call are
interpolated linearly, even those whose angle and shift are zero.

The reference's recipe scales to [0, 1] once more after the noise. Here a clamp keeps the range, so that the noise of
two pixels does not set the brightness of all others.

Bytes: at least the frames read and the images written, 5 a pixel. Kernels take two passes: the minimum and maximum of
the moved image must be known before any of its pixels can be finished.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from ..backend import choose
from ..inputs import Inputs
from ..registry import Call, Code, Operation, register
from ..shapes import VIEW_SHAPES
from .native_form import augment as native_augment
from .native_form import unsupported as native_unsupported
from .torch_form import augment_images_ref, move_maps_ref
from .triton_form import augment as triton_augment
from .triton_form import unsupported as triton_unsupported

OPERATORS = {"native": native_augment, "triton": triton_augment}

PARAMETERS = {  # shape after the batch, and whether it is floating; as in `augment_images`
    "zoom": ((), "floating"),
    "angle": ((), "floating"),
    "shift": ((2,), "floating"),
    "flip": ((2,), torch.bool),
    "gamma": ((), "floating"),
    "noise": ((), "floating"),
    "noise_key": ((), torch.int64),
}


def augment_images_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of frames read and images written, for frames of `shape` (B, *size)."""
    return 5 * torch.Size(shape).numel()


UNSUPPORTED = {"native": native_unsupported, "triton": triton_unsupported}  # fastest first


def reasons(frames: Tensor) -> dict[str, Callable[[], list[str]]]:
    """For each backend a function that lists why it cannot run on these frames."""
    return {name: partial(why, frames) for name, why in UNSUPPORTED.items()}


def augment_images(
    frames: Tensor,
    extent: Tensor,
    *,
    zoom: Tensor | None = None,
    angle: Tensor | None = None,
    shift: Tensor | None = None,
    flip: Tensor | None = None,
    gamma: Tensor | None = None,
    noise: Tensor | None = None,
    noise_key: Tensor | None = None,
    clip: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Move each image, scale it to [0, 1] and change its brightness; a parameter that is None leaves out its step.

    Args:
        frames (B, X, Y[, Z]) uint8: padded with zeros at the end of each axis. extent (B, axes) int64: their true size.
        zoom (B,) floating: magnification. angle (B,) floating: rotation in plane, radians from the first axis to the
            second. shift (B, 2) floating: pixels along the axes in plane. flip (B, 2) bool: which axes are reversed.
        gamma (B,) floating: exponent of the image in [0, 1]. noise (B,) floating: standard deviation of added noise.
        noise_key (B,) int64: 64 random bits that determine the noise of an image.
        clip: `frames` are clips (B, T, X, Y): all frames of a clip are moved alike in plane and share one min-max and
            gamma, so that changes of brightness over the cycle stay; noise differs from frame to frame.
        backend: "auto", "torch", "native" (C++ on the CPU) or "triton".

    Returns:
        (B, *size) float32 in [0, 1], zero beyond the extent; 0 everywhere for an image that is constant once moved.

    Raises:
        ValueError: an argument of another shape or dtype, on another device; BackendError: `backend` cannot run here.
    """
    moves = {"zoom": zoom, "angle": angle, "shift": shift, "flip": flip}
    brightness = {"gamma": gamma, "noise": noise, "noise_key": noise_key}
    _check("augment_images", "frames", frames, extent, moves | brightness)
    if (noise is None) != (noise_key is None):
        raise ValueError("augment_images: noise and noise_key go together, got only one of them")
    if clip and frames.ndim != 4:
        raise ValueError(f"augment_images: expected clips (B, T, X, Y), got frames {tuple(frames.shape)}, clip=True")
    picked = choose("augment_images", backend, reasons(frames))
    if picked != "torch":
        return OPERATORS[picked](frames, extent, **moves, **brightness, clip=clip, maps=False)
    return augment_images_ref(frames, extent, **moves, **brightness, clip=clip)


def move_maps(
    maps: Tensor,
    extent: Tensor,
    *,
    zoom: Tensor | None = None,
    angle: Tensor | None = None,
    shift: Tensor | None = None,
    flip: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Move motion maps as `augment_images` moves their images; interpolated linearly, and not scaled.

    Args:
        maps (B, X, Y[, Z]) uint8; the others as for `augment_images`.

    Returns:
        (B, *size) float32 in 0..255, zero beyond the extent.

    Raises: as `augment_images`.
    """
    moves = {"zoom": zoom, "angle": angle, "shift": shift, "flip": flip}
    _check("move_maps", "maps", maps, extent, moves)
    picked = choose("augment_images", backend, reasons(maps), called="move_maps")
    if picked != "torch":
        nothing = {"gamma": None, "noise": None, "noise_key": None}
        return OPERATORS[picked](maps, extent, **moves, **nothing, clip=False, maps=True)
    return move_maps_ref(maps, extent, **moves)


def _check(operation: str, name: str, frames: Tensor, extent: Tensor, parameters: dict[str, Tensor | None]) -> None:
    if frames.ndim not in (3, 4) or frames.dtype != torch.uint8:
        raise ValueError(
            f"{operation}: {name} must be uint8 (B, X, Y[, Z]), got {frames.dtype} {tuple(frames.shape)}"
        )
    batch = frames.shape[0]
    wanted = {"extent": (extent, (batch, frames.ndim - 1), torch.int64)}
    for part, value in parameters.items():
        if value is not None:
            wanted[part] = (value, (batch, *PARAMETERS[part][0]), PARAMETERS[part][1])
    for part, (value, shape, dtype) in wanted.items():
        fits = value.is_floating_point() if dtype == "floating" else value.dtype == dtype
        if not fits or value.shape != shape:
            raise ValueError(
                f"{operation}: {part} must be {str(dtype).removeprefix('torch.')} {shape} for {name} "
                f"{tuple(frames.shape)}, got {value.dtype} {tuple(value.shape)}"
            )
        if value.device != frames.device:
            raise ValueError(f"{operation}: {name} are on {frames.device}, {part} on {value.device}")

# Registration


MOVES = ("zoom", "angle", "shift", "flip")
DRAWN = {  # parameters that are given: none, those drawn by default, all
    "as stored": (), "zoomed": ("zoom",), "augmented": (*MOVES, "gamma", "noise", "noise_key"),
}  # fmt: skip


def _parameters(inputs: Inputs, batch: int) -> dict[str, Tensor]:
    return {
        "zoom": 1 + 0.1 * inputs.floats(batch), "angle": inputs.floats(batch, dtype=torch.float64),
        "shift": inputs.floats(batch, 2), "flip": inputs.integers(2, batch, 2, dtype=torch.bool),
        "gamma": inputs.floats(batch).abs(), "noise": inputs.floats(batch).abs(),
        "noise_key": inputs.integers(2**62, batch, dtype=torch.int64),
    }  # fmt: skip


def _call(size: tuple[int, ...], inputs: Inputs, batch: int, names: tuple[str, ...], clip: bool) -> list[Tensor]:
    """A call for frames, and one for the motion maps that go with them."""
    how = {name: value for name, value in _parameters(inputs, batch).items() if name in names}
    frames = inputs.integers(256, batch, *size, dtype=torch.uint8)
    extent = inputs.extents(batch, size)
    images = augment_images(frames, extent, **how, clip=clip, backend="triton")
    moves = {name: how[name] for name in how if name in MOVES}
    maps, of_maps = (frames[:, 0], extent[:, 1:]) if clip else (frames, extent)
    return [images, move_maps(maps, of_maps, **moves, backend="triton")]


def _calls() -> Iterator[Call]:
    """At the models' shapes. A view of three axes is a clip where tokens span frames, else a volume."""
    for (name, view), (variant, names) in product(VIEW_SHAPES.items(), DRAWN.items()):
        clip = len(view.size) == 3 and view.token[0] < view.token[2]
        yield Call(f"{name} {variant}", partial(_call, view.size, batch=view.batch, names=names, clip=clip))


def _small(inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """A volume in several tiles with every parameter; a plane, bicubically zoomed and without any parameter."""
    volume = _call((17, 9, 5), inputs, 2, DRAWN["augmented"], False)
    return volume + [x for how in ("zoomed", "as stored") for x in _call((30, 25), inputs, 2, DRAWN[how], False)]


register(Operation(
    augment_images,
    computes="stored frames flipped, zoomed, turned, shifted, scaled to [0, 1], with gamma and noise from Philox "
    "words, in two passes; motion maps by the same geometry",
    unsupported=UNSUPPORTED,
    launches=("augment_images", "move_maps"),
    calls=_calls,
    small=_small,
    code={
        "_extremes": Code(False, True, False, "8-bit pixels in, two numbers for each part out"),
        "_move": Code(
            False, False, True, "a thread writes four neighbouring pixels; the 8-bit pixels it reads may lie anywhere"
        ),
        "_brighten": Code(
            False, False, True, "a thread writes four neighbouring pixels, 16 bytes; it reads 4 where they are 8-bit"
        ),
    },
))  # fmt: skip
