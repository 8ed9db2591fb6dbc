"""Flips, zoom, rotation and shift against array operations, closed forms and scipy; maps stay with their images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import has_gpu
from scipy import ndimage

from cinema_fast.data.loading.augment import model_input, motion_input
from cinema_fast.data.loading.augmentation import AS_STORED, Augmentation
from cinema_fast.kernels.augment_images.torch_form import move_images

KINDS = {"2-D": (20, 20), "3-D": (20, 20, 5), "clip": (4, 20, 20)}


def drawn(n: int = 1, *, zoom=None, degrees=None, shift=None, flip=None) -> Augmentation:
    """The same for n images; None for what is not done at all."""
    return Augmentation(
        zoom=None if zoom is None else torch.full((n,), zoom),
        angle=None if degrees is None else torch.full((n,), math.radians(degrees), dtype=torch.float64),
        shift=None if shift is None else torch.tensor([shift] * n, dtype=torch.float32),
        flip=None if flip is None else torch.tensor([flip] * n),
    )


def random_images(kind: str, n: int = 1, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """n images in room for `pad` pixels more along every axis but time, and their extent."""
    size = KINDS[kind]
    extent = torch.tensor([size] * n)
    frames = torch.randint(0, 256, (n, *size), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    widths = [pad * (kind != "clip" or axis > 0) for axis in range(len(size))]
    return torch.nn.functional.pad(frames, [w for width in reversed(widths) for w in (0, width)]), extent


def plane_axes(kind: str) -> tuple[int, int]:
    return (2, 3) if kind == "clip" else (1, 2)


def moved(kind: str, frames: torch.Tensor, extent: torch.Tensor, augment: Augmentation) -> torch.Tensor:
    moves = {name: getattr(augment, name) for name in ("zoom", "angle", "shift", "flip")}
    return move_images(frames.float(), extent, **moves, clip=kind == "clip")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turns", [-1, 0, 1, 2])
def test_quarter_turns_are_those_of_the_array_to_the_bit(kind, turns):
    frames, extent = random_images(kind, 2)
    found = moved(kind, frames, extent, drawn(2, degrees=90.0 * turns))
    assert torch.equal(found, torch.rot90(frames.float(), turns, plane_axes(kind)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (-2, 5), (25, 1)])
def test_whole_pixels_are_shifted_to_the_bit_and_nothing_wraps(kind, shift):
    frames, extent = random_images(kind, 2, pad=4)
    found = moved(kind, frames, extent, drawn(2, shift=shift))
    expected = frames.float().numpy()
    for axis, by in zip(plane_axes(kind), shift):
        inside = np.take(expected, range(20), axis)
        part = ndimage.shift(inside, [by if a == axis else 0 for a in range(inside.ndim)], order=0)
        expected = np.concatenate([part, np.zeros_like(np.take(expected, range(20, 24), axis))], axis)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turning", [False, True], ids=["separable", "turning"])
@pytest.mark.parametrize("flip", [(False, False), (True, False), (False, True), (True, True)])
def test_flips_reverse_what_lies_in_the_extent_to_the_bit(kind, flip, turning):
    frames, extent = random_images(kind, 2, pad=3)
    found = moved(kind, frames, extent, drawn(2, flip=flip, degrees=0.0 if turning else None))
    axes = [axis for axis, reverse in zip(plane_axes(kind), flip) if reverse]
    inside = tuple(slice(n) for n in (2, *extent[0].tolist()))
    expected = frames.float()
    expected[inside] = expected[inside].flip(axes)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zoom", [0.9, 1.1])
def test_a_flip_and_a_zoom_are_the_zoom_and_then_the_flip(kind, zoom):
    frames, extent = random_images(kind)
    found = moved(kind, frames, extent, drawn(zoom=zoom, flip=(True, False)))
    alone = moved(kind, frames, extent, drawn(zoom=zoom))
    torch.testing.assert_close(found, alone.flip(plane_axes(kind)[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_drawn_is_the_identity_to_the_bit(kind):
    frames, extent = random_images(kind, 2, pad=3)
    nothing = drawn(2, zoom=1.0, degrees=0.0, shift=(0.0, 0.0), flip=(False, False))
    nothing = nothing._replace(gamma=torch.ones(2), noise=torch.zeros(2), noise_key=torch.arange(2))
    clip = kind == "clip"
    assert torch.equal(model_input(frames, extent, nothing, clip=clip), model_input(frames, extent, clip=clip))
    assert torch.equal(motion_input(frames[:, 0] if clip else frames, extent, nothing, clip=clip),
                       motion_input(frames[:, 0] if clip else frames, extent, clip=clip))  # fmt: skip


@pytest.mark.parametrize("zoom", [0.8, 1.0, 1.13])
def test_turning_zooms_volumes_as_the_separable_form_does(zoom):
    frames, extent = random_images("3-D", pad=2)
    found = moved("3-D", frames, extent, drawn(zoom=zoom, degrees=0.0))
    torch.testing.assert_close(found, moved("3-D", frames, extent, drawn(zoom=zoom)), rtol=0, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(8, 24), st.integers(8, 24), st.integers(1, 5)),
    zoom=st.floats(0.7, 1.4),
    degrees=st.floats(-180, 180),
    shift=st.tuples(st.floats(-9, 9), st.floats(-9, 9)),
    flip=st.tuples(st.booleans(), st.booleans()),
    pad=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_all_together_equal_scipy(size, zoom, degrees, shift, flip, pad, seed):
    """p -> c + R zoom flip (p - c) + shift, with zeros outside that linear interpolation fades into."""
    image = np.random.default_rng(seed).integers(0, 256, size).astype(np.float64)
    # as float32, which the parameters are
    zoom, shift = float(np.float32(zoom)), np.float32(shift).astype(float)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    forward = np.eye(3) * zoom
    forward[:2, :2] = zoom * np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if f else 1.0 for f in flip])
    back, centre = np.linalg.inv(forward), (np.array(size) - 1) / 2
    offset = centre - back @ (centre + np.array([*shift, 0.0]))
    expected = ndimage.affine_transform(image, back, offset=offset, order=1, mode="grid-constant")
    room = torch.zeros(1, *(n + pad for n in size))
    inside = (0, *(slice(n) for n in size))
    room[inside] = torch.from_numpy(image).float()
    augment = drawn(zoom=zoom, degrees=degrees, shift=tuple(shift.tolist()), flip=flip)
    found = moved("3-D", room, torch.tensor([size]), augment)
    np.testing.assert_allclose(found[inside].numpy(), expected, rtol=0, atol=255 * 2e-5)
    found[inside] = 0
    assert not found.any()


def blob(size, centre, width) -> torch.Tensor:
    """(*size) uint8: a Gaussian of peak 200."""
    at = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    squares = sum(((a - c) / w) ** 2 for a, c, w in zip(at, centre, width))
    return (200 * torch.exp(-squares / 2)).round().to(torch.uint8)


def middle(image: torch.Tensor) -> torch.Tensor:
    """(axes,) centre of mass of what is brighter than half the peak."""
    image = (image - image.max() / 2).clamp(min=0)
    at = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in image.shape), indexing="ij")
    return torch.stack([(a * image).sum() / image.sum() for a in at])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how",
    [{"degrees": 33.0}, {"shift": (5.5, -7.25)}, {"flip": (True, False)}, {"zoom": 1.2, "flip": (False, True)},
     {"degrees": -120.0, "shift": (-4.5, 3.0), "flip": (True, True), "zoom": 0.9}],
    ids=lambda how: " ".join(how),
)  # fmt: skip
def test_image_and_map_stay_on_top_of_each_other(kind, how):
    """A blob lies in both where the closed form puts it, whatever gamma and noise do to the image."""
    extent = (48, 44, 12) if kind == "3-D" else (48, 44)
    centre = np.array([30.0, 17.0, 6.5][: len(extent)])
    image = torch.nn.functional.pad(blob(extent, centre, (3.0, 4.0, 1.5)), (0, 3) * len(extent))[None]
    augment = drawn(**how)
    noisy = augment._replace(gamma=torch.tensor([1.3]), noise=torch.tensor([0.02]), noise_key=torch.tensor([7]))
    clip = kind == "clip"
    extents = torch.tensor([(5, *extent) if clip else extent])
    frames = image[:, None].expand(1, 5, *image.shape[1:]) if clip else image
    found = model_input(frames, extents, noisy, clip=clip)[0, 0]
    maps = motion_input(image, extents, noisy, clip=clip)[0]
    assert torch.equal(maps, motion_input(image, extents, augment, clip=clip)[0])
    angle, zoom = math.radians(how.get("degrees", 0.0)), how.get("zoom", 1.0)
    away = zoom * (centre - (np.array(extent) - 1) / 2)
    away[:2] *= [-1.0 if flipped else 1.0 for flipped in how.get("flip", (False, False))]
    x, y = away[:2]
    away[:2] = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
    away[:2] += how.get("shift", (0.0, 0.0))
    expected = torch.from_numpy((np.array(extent) - 1) / 2 + away)
    for one in (found.mean(0) if clip else found, maps):
        torch.testing.assert_close(middle(one), expected, rtol=0, atol=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_mix(kind):
    frames, extent = random_images(kind, 3, pad=2)
    augment = Augmentation(
        zoom=torch.tensor([0.9, 1.0, 1.1]),
        angle=torch.tensor([0.3, 0.0, -2.0], dtype=torch.float64),
        shift=torch.tensor([[1.5, 0.0], [0.0, 0.0], [-3.0, 2.0]]),
        flip=torch.tensor([[True, False], [False, False], [False, True]]),
        gamma=torch.tensor([0.7, 1.0, 1.4]), noise=torch.tensor([0.1, 0.0, 0.05]), noise_key=torch.tensor([5, 6, 7]),
    )  # fmt: skip
    together = model_input(frames, extent, augment, clip=kind == "clip")
    for i in range(3):
        one = augment.map(lambda values, at=i: values[at : at + 1])
        alone = model_input(frames[i : i + 1], extent[i : i + 1], one, clip=kind == "clip")
        torch.testing.assert_close(together[i], alone[0], rtol=0, atol=1e-6)
    assert torch.equal(together[1], model_input(frames, extent, AS_STORED, clip=kind == "clip")[1])


@pytest.mark.skipif(not has_gpu(), reason="compares a GPU with the CPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_makes_what_the_cpu_makes_to_rounding(kind):
    frames, extent = random_images(kind, 2, pad=3)
    augment = drawn(2, zoom=1.07, degrees=33.0, shift=(1.5, -2.25), flip=(True, False))
    augment = augment._replace(
        gamma=torch.tensor([0.7, 1.4]), noise=torch.tensor([0.1, 0.05]), noise_key=torch.tensor([5, -6])
    )
    clip = kind == "clip"
    on_gpu = model_input(frames.cuda(), extent.cuda(), augment.map(torch.Tensor.cuda), clip=clip)
    torch.testing.assert_close(on_gpu.cpu(), model_input(frames, extent, augment, clip=clip), rtol=0, atol=1e-4)
