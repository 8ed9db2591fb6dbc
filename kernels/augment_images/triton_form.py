"""The Triton form of `augment_images` and `move_maps`: two launches, because min-max needs the whole moved image.

`_move` interpolates, writes float32, and writes the minimum and maximum of each part of an image; where nothing is
moved, `_extremes` reads the frames and writes only these. `_brighten` combines the parts, then scales, applies gamma
and adds noise, in place. Each of its programs handles whole Philox calls. The eight pixels of a call lie an eighth of
the image apart, so no word is drawn twice.

The source position of a pixel is an affine function of its own position. A program computes the coefficients in float64
and continues in fixed point with 32 fractional bits. Rotations by 90 degrees and shifts by whole pixels are therefore
exact, and the rounding of a coefficient moves a pixel at the far end of a 4096-pixel axis by less than 1e-6 pixels.
Weights and values are float32.

Bytes a pixel: 1 + 4 in the first launch and 4 + 4 in the second; 1 and 1 + 4 where nothing is moved. The host never
waits for the GPU, and no parameter value triggers a compilation, so both launches can be captured in a CUDA graph.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backend import launching, tl, triton, triton_unsupported
from .gaussian_noise import HALF, PER_CALL
from .torch_form import CUBIC, FLAT

MOST_PARTS = 128  # parts of an image: each program of `_brighten` reads the minima and maxima of all of them
# A bound on pixels per axis, on the shift, and on the distance of neighbours' sources under a tiny zoom: it keeps every
# position below 2^31. Positions beyond it lie outside of the image, where all is 0.
MOST_PIXELS = 2**14
CUBIC_A = tl.constexpr(CUBIC)
FIXED = tl.constexpr(2.0**32)  # 1 in fixed point
MOST = tl.constexpr(float(MOST_PIXELS))
HALF_PI = tl.constexpr(math.pi / 2)
QUARTER_TURN = tl.constexpr(HALF // 4)


@triton.jit
def _cos_sin(quarter, rest):
    """Of the angle quarter * pi / 2 + rest, |rest| <= pi / 4, by Taylor's series: to 1e-10, or rest's own rounding."""
    x = rest * rest
    even = 1 + x * (-1 / 2 + x * (1 / 24 + x * (-1 / 720 + x * (1 / 40320 - x / 3628800))))
    odd = rest * (1 + x * (-1 / 6 + x * (1 / 120 + x * (-1 / 5040 + x * (1 / 362880 - x / 39916800)))))
    swapped = (quarter & 1) == 1
    cos, sin = tl.where(swapped, odd, even), tl.where(swapped, even, odd)
    return tl.where(((quarter + 1) & 2) == 2, -cos, cos), tl.where((quarter & 2) == 2, -sin, sin)


@triton.jit
def _true_size(extent_ptr, sample, SIZE: tl.constexpr, KIND: tl.constexpr):
    """An image's own (T, X, Y, Z) in its room of SIZE."""
    axes_ptr = extent_ptr + sample * (2 if KIND == "plane" else 3)
    plane_ptr = axes_ptr + (1 if KIND == "clip" else 0)
    t = tl.load(axes_ptr).to(tl.int32) if KIND == "clip" else SIZE[0]
    z = tl.load(plane_ptr + 2).to(tl.int32) if KIND == "volume" else SIZE[3]
    return t, tl.load(plane_ptr).to(tl.int32), tl.load(plane_ptr + 1).to(tl.int32), z


@triton.jit
def _place(line, SIZE: tl.constexpr):
    """(t, x, y) of the lines along Z, counted in row-major order."""
    plane = line // SIZE[2]
    return plane // SIZE[1], plane % SIZE[1], line % SIZE[2]


@triton.jit
def _inverse_zoom(zoom_ptr, sample):
    """float64"""
    return tl.minimum(1 / tl.load(zoom_ptr + sample).to(tl.float64), MOST)


@triton.jit
def _shift(shift_ptr, sample, AXIS: tl.constexpr):
    """float64"""
    return tl.minimum(tl.maximum(tl.load(shift_ptr + sample * 2 + AXIS).to(tl.float64), -MOST), MOST)


@triton.jit
def _fixed(x):
    return tl.floor(x * FIXED + 0.5).to(tl.int64)


@triton.jit
def _source(sample, n_x, n_y, zoom_ptr, angle_ptr, shift_ptr, flip_ptr):
    """(start, of_x, of_y) for either axis in plane: pixel (x, y) shows the input at start + of_x * x + of_y * y."""
    one = tl.full((), 1.0, tl.float64)
    inverse_x = one if zoom_ptr is None else _inverse_zoom(zoom_ptr, sample)
    inverse_y = inverse_x
    if flip_ptr is not None:
        inverse_x *= one - 2 * tl.load(flip_ptr + sample * 2).to(tl.float64)
        inverse_y *= one - 2 * tl.load(flip_ptr + sample * 2 + 1).to(tl.float64)
    cos, sin = one, one - one
    if angle_ptr is not None:
        angle = tl.load(angle_ptr + sample).to(tl.float64)
        quarter = tl.floor(angle / HALF_PI + 0.5)
        cos, sin = _cos_sin(quarter.to(tl.int64), angle - quarter * HALF_PI)
    centre_x, centre_y = (n_x - one) / 2, (n_y - one) / 2
    to_x = centre_x if shift_ptr is None else centre_x + _shift(shift_ptr, sample, 0)
    to_y = centre_y if shift_ptr is None else centre_y + _shift(shift_ptr, sample, 1)
    xx, xy, yx, yy = inverse_x * cos, inverse_x * sin, -inverse_y * sin, inverse_y * cos
    start_x, start_y = centre_x - xx * to_x - xy * to_y, centre_y - yx * to_x - yy * to_y
    return (_fixed(start_x), _fixed(xx), _fixed(xy)), (_fixed(start_y), _fixed(yx), _fixed(yy))


@triton.jit
def _split(at):
    """The pixel below a place in fixed point, and the part of a pixel that the place lies above it in float32."""
    return (at >> 32).to(tl.int32), ((at >> 8) & 0xFFFFFF).to(tl.int32).to(tl.float32) * (1 / 16777216)


@triton.jit
def _weight(part, TAP: tl.constexpr, TAPS: tl.constexpr):
    """Of neighbour TAP among TAPS = 2 (linear) or 4 (Keys' cubic), for a place `part` of a pixel above the lower."""
    if TAPS == 2:
        return 1 - part if TAP == 0 else part
    d = part + (1 - TAP) if TAP < 2 else (TAP - 1) - part
    if TAP == 1 or TAP == 2:
        return ((CUBIC_A + 2) * d - (CUBIC_A + 3)) * d * d + 1
    return ((CUBIC_A * d - 5 * CUBIC_A) * d + 8 * CUBIC_A) * d - 4 * CUBIC_A


@triton.jit
def _neighbour(low, part, n, TAP: tl.constexpr, TAPS: tl.constexpr, SIZE: tl.constexpr):
    """(pixel, weight) of a neighbour along an axis; beyond the image's n pixels some pixel of its room, of weight 0."""
    pixel = low + (TAP + 1 - TAPS // 2)
    weight = tl.where((pixel >= 0) & (pixel < n), _weight(part, TAP, TAPS), 0.0)
    return tl.minimum(tl.maximum(pixel, 0), SIZE - 1), weight


@triton.jit
def _store_extremes(extremes_ptr, sample, part, lowest, highest, PARTS: tl.constexpr):
    first = extremes_ptr + sample * (2 * PARTS) + part
    tl.store(first, tl.min(lowest, 0))
    tl.store(first + PARTS, tl.max(highest, 0))


@triton.jit
def _extremes(
    frames_ptr, extremes_ptr, extent_ptr,
    SIZE: tl.constexpr, KIND: tl.constexpr, PARTS: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Minimum and maximum of one part of a stored image."""
    PIXELS: tl.constexpr = SIZE[0] * SIZE[1] * SIZE[2] * SIZE[3]
    sample, part = (tl.program_id(0) // PARTS).to(tl.int64), tl.program_id(0) % PARTS
    n_t, n_x, n_y, n_z = _true_size(extent_ptr, sample, SIZE, KIND)
    lowest = tl.full((BLOCK,), float("inf"), tl.float32)
    highest = -lowest
    for tile in range(TILES):
        pixel = (part * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        t, x, y = _place(pixel // SIZE[3], SIZE)
        inside = (pixel < PIXELS) & (t < n_t) & (x < n_x) & (y < n_y) & (pixel % SIZE[3] < n_z)
        value = tl.load(frames_ptr + sample * PIXELS + pixel, mask=pixel < PIXELS, other=0).to(tl.float32)
        lowest = tl.minimum(lowest, tl.where(inside, value, float("inf")))
        highest = tl.maximum(highest, tl.where(inside, value, float("-inf")))
    _store_extremes(extremes_ptr, sample, part, lowest, highest, PARTS)


@triton.jit
def _move(
    frames_ptr, out_ptr, extremes_ptr, extent_ptr, zoom_ptr, angle_ptr, shift_ptr, flip_ptr,
    SIZE: tl.constexpr, KIND: tl.constexpr, TAPS: tl.constexpr, PARTS: tl.constexpr, TILES: tl.constexpr,
    LINES: tl.constexpr, BLOCK_Z: tl.constexpr,
):  # fmt: skip
    """One part of an image moved, a tile of LINES lines along Z at a time; its minimum and maximum where asked for."""
    sample, part = (tl.program_id(0) // PARTS).to(tl.int64), tl.program_id(0) % PARTS
    image = sample * (SIZE[0] * SIZE[1] * SIZE[2] * SIZE[3])
    n_t, n_x, n_y, n_z = _true_size(extent_ptr, sample, SIZE, KIND)
    z = tl.arange(0, BLOCK_Z)[None, :]
    ALONG_Z: tl.constexpr = KIND == "volume" and zoom_ptr is not None
    if ALONG_Z:
        inverse, centre = _inverse_zoom(zoom_ptr, sample), (n_z - 1).to(tl.float64) / 2
        low_z, part_z = _split(_fixed(centre - inverse * centre) + _fixed(inverse) * z)
        below, of_below = _neighbour(low_z, part_z, n_z, 0, 2, SIZE[3])
        above, of_above = _neighbour(low_z, part_z, n_z, 1, 2, SIZE[3])
    x_from, y_from = _source(sample, n_x, n_y, zoom_ptr, angle_ptr, shift_ptr, flip_ptr)
    lowest = tl.full((LINES, BLOCK_Z), float("inf"), tl.float32)
    highest = -lowest
    for tile in range(TILES):
        line = (part * TILES + tile) * LINES + tl.arange(0, LINES)[:, None]
        in_room = line < SIZE[0] * SIZE[1] * SIZE[2]
        t, x, y = _place(tl.where(in_room, line, 0), SIZE)  # all neighbours lie in the room: loads need no mask
        in_plane = in_room & (t < n_t) & (x < n_x) & (y < n_y)
        at_x, at_y = x_from[0] + x_from[1] * x, y_from[0] + y_from[2] * y
        if angle_ptr is not None:
            at_x, at_y = at_x + x_from[2] * y, at_y + y_from[1] * x
        low_x, part_x = _split(at_x)
        low_y, part_y = _split(at_y)
        value = tl.zeros((LINES, BLOCK_Z), tl.float32)
        for i in tl.static_range(TAPS):
            from_x, of_x = _neighbour(low_x, part_x, n_x, i, TAPS, SIZE[1])
            row = tl.zeros((LINES, BLOCK_Z), tl.float32)
            for j in tl.static_range(TAPS):
                from_y, of_y = _neighbour(low_y, part_y, n_y, j, TAPS, SIZE[2])
                pixels = frames_ptr + image + ((t * SIZE[1] + from_x) * SIZE[2] + from_y) * SIZE[3] + z
                row += of_y * tl.load(pixels, mask=z < SIZE[3], other=0).to(tl.float32)
            value += of_x * row
        if ALONG_Z:
            shape: tl.constexpr = (LINES, BLOCK_Z)
            value = of_below * tl.gather(value, tl.broadcast_to(below, shape), 1) + of_above * tl.gather(
                value, tl.broadcast_to(above, shape), 1
            )
        inside = in_plane & (z < n_z)
        tl.store(
            out_ptr + image + (line * SIZE[3] + z), tl.where(inside, value, 0.0), mask=in_room & (z < SIZE[3])
        )
        if extremes_ptr is not None:
            lowest = tl.minimum(lowest, tl.where(inside, value, float("inf")))
            highest = tl.maximum(highest, tl.where(inside, value, float("-inf")))
    if extremes_ptr is not None:
        _store_extremes(extremes_ptr, sample, part, tl.min(lowest, 1), tl.max(highest, 1), PARTS)


@triton.jit
def _brighten(
    images_ptr, out_ptr, extremes_ptr, extent_ptr, gamma_ptr, noise_ptr, key_ptr,
    SIZE: tl.constexpr, KIND: tl.constexpr, FLAT: tl.constexpr, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The pixels of BLOCK calls of Philox: call c draws for pixels c, c + CALLS, ..., c + 7 CALLS."""
    PIXELS: tl.constexpr = SIZE[0] * SIZE[1] * SIZE[2] * SIZE[3]
    CALLS: tl.constexpr = (PIXELS + 7) // 8
    sample, block = (tl.program_id(0) // BLOCKS).to(tl.int64), tl.program_id(0) % BLOCKS
    image = sample * PIXELS
    n_t, n_x, n_y, n_z = _true_size(extent_ptr, sample, SIZE, KIND)
    part = tl.arange(0, BLOCK_PARTS)
    first = extremes_ptr + sample * (2 * PARTS) + part
    low = tl.min(tl.load(first, mask=part < PARTS, other=float("inf")), 0)
    spread = tl.max(tl.load(first + PARTS, mask=part < PARTS, other=float("-inf")), 0) - low
    constant = spread < FLAT
    spread = tl.where(constant, 1.0, spread)
    call = block * BLOCK + tl.arange(0, BLOCK)
    if gamma_ptr is not None:
        gamma = tl.load(gamma_ptr + sample).to(tl.float32)
    if noise_ptr is not None:
        deviation = tl.load(noise_ptr + sample).to(tl.float32)
        zero = call * 0
        words = tl.philox(tl.load(key_ptr + sample), call, zero, zero, zero)
    for k in tl.static_range(4):
        if noise_ptr is not None:
            word = words[k].to(tl.uint32, bitcast=True)
            radius = tl.sqrt(-2.0 * tl.log(((word >> 16).to(tl.float32) + 0.5) * (1 / 65536)))
            angle = (word & 0xFFFF).to(tl.int32)
            quarter = (angle + QUARTER_TURN // 2) // QUARTER_TURN
            drawn = _cos_sin(quarter, (angle - quarter * QUARTER_TURN).to(tl.float32) * (HALF_PI / QUARTER_TURN))
        for odd in tl.static_range(2):
            pixel = (4 * odd + k) * CALLS + call
            in_room = (call < CALLS) & (pixel < PIXELS)
            t, x, y = _place(pixel // SIZE[3], SIZE)
            inside = (t < n_t) & (x < n_x) & (y < n_y) & (pixel % SIZE[3] < n_z)
            value = tl.load(images_ptr + image + pixel, mask=in_room, other=0).to(tl.float32)
            value = tl.where(constant, 0.0, tl.div_rn(value - low, spread))
            if gamma_ptr is not None:  # 1 leaves all as it is, to the bit
                power = tl.where(value > 0, tl.exp2(gamma * tl.log2(tl.where(value > 0, value, 1.0))), 0.0)
                value = tl.where(gamma == 1, value, power)
            if noise_ptr is not None:
                value = tl.minimum(tl.maximum(value + deviation * radius * drawn[odd], 0.0), 1.0)
            tl.store(out_ptr + image + pixel, tl.where(inside, value, 0.0), mask=in_room)


def augment_config(size: Sequence[int]) -> dict[str, dict[str, int]]:
    """Launch configuration of each kernel for images of `size` (T, X, Y, Z). Not tuned on a GPU: a thread loads or
    stores 16 bytes at once. In `_move` these are four pixels, not more, since each has up to 16 neighbours in
    registers. With four warps instead of eight the cubic form spills registers on sm_90."""
    lines, block_z = math.prod(size[:3]), 1 << (size[3] - 1).bit_length()
    pixels = lines * size[3]
    block_lines = max(1, 1024 // block_z)
    blocks = -(-pixels // (PER_CALL * 512))
    return {
        "extremes": {**_parts(pixels, 2048), "BLOCK": 2048, "num_warps": 4},
        "move": {**_parts(lines, block_lines), "LINES": block_lines, "BLOCK_Z": block_z, "num_warps": 8},
        "brighten": {"BLOCKS": blocks, "BLOCK": 512, "num_warps": 4},
    }


def _parts(n: int, tile: int) -> dict[str, int]:
    """PARTS of an image, and TILES of a part, for n elements at `tile` elements a tile."""
    tiles = -(-n // (tile * MOST_PARTS))
    return {"PARTS": -(-n // (tile * tiles)), "TILES": tiles}


def unsupported(frames: Tensor) -> list[str]:
    """Why the kernels cannot run on these frames; empty where they can."""
    why = triton_unsupported(frames)
    size = tuple(frames.shape[1:])
    if math.prod(size) >= 2**30 or max(size) > MOST_PIXELS:
        why.append(f"images of {size} pixels (expected fewer than 2^30 of them, and axes up to {MOST_PIXELS})")
    return why


@torch.library.custom_op("cinema_fast::augment_images_triton", mutates_args=())
def augment(
    frames: Tensor, extent: Tensor, zoom: Tensor | None, angle: Tensor | None, shift: Tensor | None,
    flip: Tensor | None, gamma: Tensor | None, noise: Tensor | None, noise_key: Tensor | None, clip: bool, maps: bool,
) -> Tensor:  # fmt: skip
    """`augment_images`, or `move_maps` where `maps` is true; the arguments are already checked."""
    out = _empty(frames)
    if not out.numel():
        return out
    size, kind = _room(frames, clip)
    config = augment_config(size)
    given = (frames, extent, zoom, angle, shift, flip, gamma, noise, noise_key)
    frames, extent, *parameters = (None if t is None else t.contiguous() for t in given)
    moves, brightness = parameters[:4], parameters[4:]
    moved = maps or any(parameter is not None for parameter in moves)
    first = config["move" if moved else "extremes"]
    extremes = None if maps else torch.empty(len(frames), 2, first["PARTS"], device=frames.device)
    operation = "move_maps" if maps else "augment_images"
    with launching(operation, frames):
        if moved:
            cubic = not maps and kind != "volume" and zoom is not None and angle is None and shift is None
            _move[(len(frames) * first["PARTS"],)](
                frames, out, extremes, extent, *moves, SIZE=size, KIND=kind, TAPS=4 if cubic else 2, **first
            )
        else:
            _extremes[(len(frames) * first["PARTS"],)](frames, extremes, extent, SIZE=size, KIND=kind, **first)
    if maps:
        return out
    with launching(operation, frames):
        _brighten[(len(frames) * config["brighten"]["BLOCKS"],)](
            out if moved else frames, out, extremes, extent, *brightness, SIZE=size, KIND=kind, FLAT=FLAT,
            PARTS=first["PARTS"], BLOCK_PARTS=1 << (first["PARTS"] - 1).bit_length(), **config["brighten"],
        )  # fmt: skip
    return out


@augment.register_fake
def _empty(frames, *_):
    return torch.empty_like(frames, dtype=torch.float32, memory_format=torch.contiguous_format)


def _room(frames: Tensor, clip: bool) -> tuple[tuple[int, ...], str]:
    """The frames' size as (T, X, Y, Z), with 1 for a missing axis, and their kind."""
    size = tuple(frames.shape[1:])
    if clip:
        return (*size, 1), "clip"
    return ((1, *size, 1), "plane") if len(size) == 2 else ((1, *size), "volume")
