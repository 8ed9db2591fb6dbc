"""Frames that are scaled by their common range: against float64 arithmetic, and as single frames where there is one."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from cinema_fast.data.loading.augmentation import AS_STORED, Augmentation
from cinema_fast.data.loading.batch import frames_input, padded_input

SIZES = {"stack": (14, 12, 4), "slice": (14, 12)}
EXTENT = {"stack": (13, 10, 3), "slice": (13, 10)}
TURNED = {"zoom": [1.2, 0.9], "angle": [0.4, -2.0], "shift": [[1.5, -2.25], [0.0, 3.0]],
          "flip": [[True, False], [False, True]]}  # fmt: skip


def frames_of(kind: str, n: int = 2, batch: int = 2) -> torch.Tensor:
    """uint8 (B, n, *size), the second frame darker than the first; zeros beyond the extent."""
    frames = np.zeros((batch, n, *SIZES[kind]), np.uint8)
    inside = (..., *(slice(k) for k in EXTENT[kind]))
    frames[inside] = np.random.default_rng(3).integers(40, 250, frames[inside].shape)
    frames[:, 1:] //= 2
    return torch.from_numpy(frames)


def augmentation(batch: int = 2, **drawn) -> Augmentation:
    kinds = {"angle": torch.float64, "flip": torch.bool, "noise_key": torch.int64}
    return Augmentation(**{name: torch.tensor(values[:batch], dtype=kinds.get(name, torch.float32))
                           for name, values in drawn.items()})  # fmt: skip


def moved(frame: np.ndarray, extent, zoom: float, angle: float, shift, flip) -> np.ndarray:
    """A frame (*size) in float64: flipped, zoomed and turned about its centre, shifted; linear, zeros from outside."""
    image = frame[tuple(slice(k) for k in extent)].astype(np.float64)
    middle = (np.array(extent) - 1) / 2
    at = np.stack(np.meshgrid(*map(np.arange, extent), indexing="ij"), -1) - middle
    back = np.eye(len(extent))
    back[:2, :2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    offset = np.zeros(len(extent))
    offset[:2] = shift
    signs = np.ones(len(extent))
    signs[:2] = 1 - 2 * np.array(flip)
    source = (at - offset) @ back.T / zoom * signs + middle
    return map_coordinates(image, np.moveaxis(source, -1, 0), order=1, mode="grid-constant")


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("turned", [False, True], ids=["as stored", "moved"])
def test_both_frames_have_one_range(kind, turned):
    frames, extent, gamma = frames_of(kind), EXTENT[kind], [0.7, 1.4]
    moves = TURNED if turned else {}
    found = frames_input(frames, torch.tensor([extent] * 2), augmentation(**moves, gamma=gamma), clip=False, joint=True)
    assert found.shape == frames.shape and found.dtype == torch.float32
    inside = tuple(slice(k) for k in extent)
    for b in range(2):
        how = {name: moves[name][b] for name in moves} or {"zoom": 1.0, "angle": 0.0, "shift": (0, 0), "flip": (0, 0)}
        images = np.stack([moved(frame, extent, **how) for frame in frames[b].numpy()])
        expected = ((images - images.min()) / (images.max() - images.min())) ** gamma[b]
        np.testing.assert_allclose(found[(b, slice(None), *inside)], expected, atol=2e-5)
        assert found[b].sum().item() == pytest.approx(expected.sum(), rel=1e-5)  # zeros beyond the extent
    assert (found[:, 1].amax(tuple(range(1, frames.ndim - 1))) < 0.8).all()  # the darker frame stays darker


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("names", [(), ("zoom",), ("zoom", "flip"), tuple(TURNED)], ids=len)
def test_a_single_frame_is_as_ever(kind, names):
    """With every change of brightness too, whose noise is that of the key."""
    frames, extent = frames_of(kind, 1), torch.tensor([EXTENT[kind]] * 2)
    drawn = augmentation(**{name: TURNED[name] for name in names}, gamma=[0.7, 1.3], noise=[0.05, 0.1],
                         noise_key=[5, 2**60])  # fmt: skip
    alone, joint = (frames_input(frames, extent, drawn, clip=False, joint=how) for how in (False, True))
    torch.testing.assert_close(joint, alone, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", SIZES)
def test_constant_frames_and_noise(kind):
    frames, extent = torch.full_like(frames_of(kind), 7), torch.tensor([EXTENT[kind]] * 2)
    assert not frames_input(frames, extent, AS_STORED, clip=False, joint=True).any()
    noisy = augmentation(noise=[0.1, 0.1], noise_key=[1, 2])
    first, second = frames_input(frames_of(kind), extent, noisy, clip=False, joint=True).unbind(1)
    plain = frames_input(frames_of(kind), extent, AS_STORED, clip=False, joint=True)
    off = torch.stack([first, second], 1) - plain
    inside = (..., *(slice(1, k - 1) for k in EXTENT[kind][:2]))
    assert off[inside].std() > 0.05 and abs(np.corrcoef(off[:, 0].flatten(), off[:, 1].flatten())[0, 1]) < 0.3


@pytest.mark.parametrize("kind", SIZES)
def test_it_is_one_graph(kind):
    frames, extent = frames_of(kind), torch.tensor([EXTENT[kind]] * 2)
    drawn = augmentation(**TURNED, gamma=[0.7, 1.3], noise=[0.05, 0.1], noise_key=[5, 6])
    whole = torch.compile(lambda *a: frames_input(*a, clip=False, joint=True), backend="aot_eager", fullgraph=True)
    plain = frames_input(frames, extent, drawn, clip=False, joint=True)
    torch.testing.assert_close(whole(frames, extent, drawn), plain)


def test_padded_input():
    """ED and ES of a prediction, padded to the model's size."""
    frames = frames_of("slice").numpy()[..., :13, :10]
    found = padded_input(frames, (16, 12), torch.device("cpu"), "lax_4c", joint=True).numpy()
    low, high = frames.min((1, 2, 3), keepdims=True).astype(float), frames.max((1, 2, 3), keepdims=True).astype(float)
    expected = (frames - low) / (high - low)
    np.testing.assert_allclose(found[..., :13, :10], expected, atol=1e-6)
    assert not found[..., 13:, :].any() and not found[..., 10:].any()
