"""The kernels of `augment_images` and `move_maps`: how an image is shared out, launched and captured.

What they compute is checked in test_augment_images.py, as of every backend.
"""

import math

import pytest
import torch
from augment_cases import everything, images
from machine import has_gpu

from cinema_fast.kernels import BackendError, augment_images, launches, move_maps
from cinema_fast.kernels.augment_images import triton_form

ROOMS = {"stored": (70, 71), "2-D": (31, 40), "3-D": (25, 9, 5), "clip": (3, 18, 23)}


def some(room: tuple[int, ...], device: str, n: int = 2):
    """n images, all but the first smaller than their room, and all parameters."""
    frames, extent = images([tuple(size - i for size in room) for i in range(n)], room)
    return frames.to(device), extent.to(device), {name: value.to(device) for name, value in everything(n).items()}


@pytest.fixture(autouse=True)
def about_kernels(request):
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "torch":
        pytest.skip("about kernels: runs in the interpreter and on a GPU")


@pytest.mark.parametrize("kind", ROOMS)
def test_parts_of_any_number_of_tiles(backend, device, monkeypatch, kind):
    """Two parts of several tiles, the last not full, as a large image has 128: the same bits as one tile a part."""
    frames, extent, how = some(ROOMS[kind], device)
    how = {} if kind == "stored" else {"zoom": how["zoom"]}
    how = {**how, "clip": kind == "clip", "backend": backend}
    monkeypatch.setattr(triton_form, "_parts", lambda n, tile: {"PARTS": -(-n // tile), "TILES": 1})
    expected = augment_images(frames, extent, **how)
    monkeypatch.undo()
    monkeypatch.setattr(triton_form, "MOST_PARTS", 2)
    assert torch.equal(augment_images(frames, extent, **how), expected)


def test_config_covers_a_room():
    for room in ((1, 192, 192, 16), (16, 192, 192, 1), (1, 1, 1, 1), (1, 3, 5, 700), (1, 1021, 1031, 3)):
        config, lines, pixels = triton_form.augment_config(room), math.prod(room[:3]), math.prod(room)
        move, extremes, brighten = config["move"], config["extremes"], config["brighten"]
        assert room[3] <= move["BLOCK_Z"] < 2 * room[3] and move["LINES"] * move["BLOCK_Z"] <= max(1024, 2 * room[3])
        for shared, tile, n in ((move, move["LINES"], lines), (extremes, extremes["BLOCK"], pixels)):
            assert shared["PARTS"] <= triton_form.MOST_PARTS
            assert (shared["PARTS"] - 1) * shared["TILES"] * tile < n <= shared["PARTS"] * shared["TILES"] * tile
        assert (brighten["BLOCKS"] - 1) * brighten["BLOCK"] * 8 < pixels <= brighten["BLOCKS"] * brighten["BLOCK"] * 8


@pytest.mark.parametrize("zoomed", [False, True], ids=["stored", "zoomed"])
def test_frames_after_a_clips_end_have_no_part_in_its_brightness_and_gamma_one_none_either(backend, device, zoomed):
    """Nothing within the extent is black: zeros beyond it would be the minimum."""
    clip = torch.zeros(1, 3, 5, 6, dtype=torch.uint8, device=device)
    clip[:, :2] = torch.arange(60, dtype=torch.uint8, device=device).view(2, 5, 6) + 50
    ones = torch.ones(1, device=device)
    how = {"zoom": ones if zoomed else None, "clip": True, "backend": backend}
    found = augment_images(clip, torch.tensor([[2, 5, 6]], device=device), gamma=ones, **how)
    expected = torch.cat([torch.arange(60.0, device=device) / 59, torch.zeros(30, device=device)])
    assert torch.equal(found.flatten(), expected)


def test_two_launches_for_images_one_for_maps_none_for_no_image(backend, device):
    frames, extent, how = some((9, 8), device)
    before = launches()

    def since(operation):
        return launches().get(operation, 0) - before.get(operation, 0)

    augment_images(frames, extent, **how, backend=backend)
    assert (since("augment_images"), since("move_maps")) == (2, 0)
    augment_images(frames, extent, backend=backend)
    assert (since("augment_images"), since("move_maps")) == (4, 0)
    move_maps(frames, extent, zoom=how["zoom"], backend=backend)
    assert (since("augment_images"), since("move_maps")) == (4, 1)
    augment_images(frames[:0], extent[:0], backend=backend)
    move_maps(frames[:0], extent[:0], backend=backend)
    assert (since("augment_images"), since("move_maps")) == (4, 1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter
def test_wrong_extents_and_parameters_that_are_no_numbers_read_no_other_memory(backend, device):
    """On a GPU: compute-sanitizer would tell. In the interpreter: no fault, and images beside it are as without it."""
    frames, *_ = some((9, 8, 5), device)
    expected = augment_images(frames[:1], torch.tensor([[9, 8, 5]], device=device), backend=backend)
    for wrong in ([99, 99, 99], [-3, 4, 5], [0, 8, 5]):
        extent = torch.tensor([[9, 8, 5], wrong], device=device)
        assert torch.equal(augment_images(frames, extent, backend=backend)[:1], expected)
        for value in (math.nan, 0.0):
            odd = {"zoom": torch.tensor([1.0, value], device=device),
                   "shift": torch.tensor([[0.0, 0.0], [value] * 2], device=device)}  # fmt: skip
            assert torch.equal(augment_images(frames, extent, **odd, backend=backend)[:1], expected)


@pytest.mark.parametrize("maps", [False, True], ids=["images", "maps"])
def test_the_operator_is_sound(backend, device, maps):
    frames, extent, how = some((5, 4), device)
    how |= dict.fromkeys(("gamma", "noise", "noise_key")) if maps else {}
    torch.library.opcheck(triton_form.augment, (frames, extent), {**how, "clip": False, "maps": maps})


@pytest.mark.parametrize("size", [(1, 16385), (2**10, 2**10, 2**10)])
def test_too_large_images(size):
    frames = torch.zeros(1, *[1] * len(size), dtype=torch.uint8).expand(1, *size)
    with pytest.raises(BackendError, match=r"expected fewer than 2\^30 of them, and axes up to 16384"):
        augment_images(frames, torch.tensor([size]), backend="triton")


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="a graph is captured on a GPU")
@pytest.mark.parametrize("room", [(40, 37), (30, 21, 16)], ids=str)
def test_captured_in_a_cuda_graph(room):
    frames, extent, how = some(room, "cuda")
    augment_images(frames, extent, **how, backend="triton")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = augment_images(frames, extent, **how, backend="triton")
    frames.copy_(255 - frames)
    how["angle"].add_(0.5)
    graph.replay()
    assert torch.equal(found, augment_images(frames, extent, **how, backend="triton"))
