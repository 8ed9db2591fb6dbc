"""Images, parameters and bounds for the tests of `augment_images` and `move_maps`."""

import math
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from cinema_fast.kernels.augment_images.gaussian_noise import gaussian_noise
from cinema_fast.kernels.augment_images.torch_form import FLAT, beyond, min_max, move_images

MOVES = ("zoom", "angle", "shift", "flip")
# float32 sums of at most four or 2 x 4 products of grey values up to 255 and weights, and those bicubic ones below 0
MOVED = 255 * 2e-6
# a scaled image and its power, numbers up to 1, in float32; and the noise, a radius up to 4.9 times a cosine
SCALED, DRAWN = 4e-7, 2e-6


class Case(NamedTuple):
    """clip: of `augment_images`. how: its other arguments."""

    frames: Tensor
    extent: Tensor
    clip: bool
    how: dict[str, Tensor]

    @property
    def moves(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.how.items() if name in MOVES}

    def on(self, device: str) -> "Case":
        how = {name: value.to(device) for name, value in self.how.items()}
        return Case(self.frames.to(device), self.extent.to(device), self.clip, how)

    def part(self, which: slice) -> "Case":
        how = {name: value[which] for name, value in self.how.items()}
        return Case(self.frames[which], self.extent[which], self.clip, how)


def images(extents: list[tuple[int, ...]], room: tuple[int, ...], seed: int = 0, contrast: int = 255):
    """Random grey values of 0..contrast within each extent, zeros up to the room, and the extents."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, contrast + 1, (len(extents), *room), generator=generator, dtype=torch.uint8)
    extent = torch.tensor(extents)
    return frames.masked_fill_(beyond(extent, room), 0), extent


def everything(n: int) -> dict[str, Tensor]:
    """Each parameter, another for each of n images; of the first nothing but the noise."""
    return {
        "zoom": torch.linspace(1, 1.15, n),
        "angle": torch.linspace(0, 2.5, n, dtype=torch.float64),
        "shift": torch.stack([torch.linspace(0, 3.3, n), torch.linspace(0, -2.2, n)], 1),
        "flip": torch.stack([torch.arange(n) % 2 == 1, torch.arange(n) % 4 > 1], 1),
        "gamma": torch.linspace(1, 0.5, n),
        "noise": torch.linspace(0.02, 0.2, n),
        "noise_key": torch.arange(n) * 2**60 - 2**62 + 5,
    }


@st.composite
def cases(draw, longest: int) -> Case:
    """Any kind, size, and parameters, extents from one pixel to the room."""
    kind = draw(st.sampled_from(["2-D", "3-D", "clip"]))
    n = draw(st.integers(1, 3))
    room = [draw(st.integers(1, longest)) for _ in range(2)]
    room = {"2-D": room, "3-D": [*room, draw(st.integers(1, 18))], "clip": [draw(st.integers(1, 3)), *room]}[kind]
    extents = [tuple(draw(st.integers(1, size)) for size in room) for _ in range(n)]
    frames, extent = images(extents, room, draw(st.integers(0, 9)), draw(st.sampled_from([0, 1, 30, 255])))

    def drawn(values, dtype=torch.float32):
        return torch.tensor([draw(values) for _ in range(n)], dtype=dtype)

    strategies = {
        "zoom": st.floats(0.5, 2), "shift": st.tuples(*[st.floats(-9, 9)] * 2), "flip": st.tuples(*[st.booleans()] * 2),
        "angle": st.floats(-math.pi, math.pi), "gamma": st.floats(0.25, 4), "noise": st.floats(0, 0.4),
    }  # fmt: skip
    dtypes = {"flip": torch.bool, "angle": torch.float64}
    names = draw(st.sets(st.sampled_from(list(strategies))))
    how = {name: drawn(strategies[name], dtypes.get(name, torch.float32)) for name in sorted(names)}
    if "noise" in how:
        how["noise_key"] = drawn(st.integers(-(2**63), 2**63 - 1), torch.int64)
    return Case(frames, extent, kind == "clip", how)


def moved_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Of the float64 form: the moved images, which of their pixels are padding, and the grey values they span (B,)."""
    padding, axes = beyond(case.extent, case.frames.shape[1:]), tuple(range(1, case.frames.ndim))
    moved = move_images(case.frames.double(), case.extent, **case.moves, clip=case.clip)
    spread = moved.masked_fill(padding, -torch.inf).amax(axes) - moved.masked_fill(padding, torch.inf).amin(axes)
    return moved, padding, spread


def is_ambiguous(case: Case) -> bool:
    """Whether an image is constant hangs on the rounding of its moved grey values."""
    spread = moved_of(case)[2]
    return bool(((spread > FLAT - 2 * MOVED) & (spread < FLAT + 2 * MOVED)).any())


def check(found: Tensor, case: Case) -> None:
    """`found` lies within what the float64 form makes of the moved image, were it off by MOVED grey values.

    Such an error is one of the scaled image by the spread of its grey values, and what a power makes of it is bounded
    by the power of both ends: near 0 an exponent below 1 has no bounded slope.
    """
    frames, _, _, how = case
    assert found.dtype == torch.float32 and found.shape == frames.shape
    moved, padding, spread = moved_of(case)
    each = [-1] + [1] * (frames.ndim - 1)
    off = torch.where(spread > FLAT, 3 * MOVED / spread, 0).view(each)
    scaled = min_max(moved, padding)
    ends = []
    for end in (scaled - off, scaled + off):
        end = end.clamp(min=0)
        if "gamma" in how:
            end = end ** how["gamma"].double().view(each)
        if "noise" in how:
            noise = gaussian_noise(how["noise_key"], frames[0].numel(), torch.float64).view(frames.shape)
            end = (end + noise * how["noise"].double().view(each)).clamp(0, 1)
        ends.append(end.masked_fill(padding, 0.0))
    below, above = ends[0] - found, found - ends[1]
    rounded = SCALED + (DRAWN * how["noise"].double().view(each) if "noise" in how else 0)
    worst = float((torch.maximum(below, above) - rounded).max())
    assert worst <= 0, f"beyond what rounding explains by {worst:.2e}"
    assert not found[padding].any() and found.min() >= 0 and found.max() <= 1
