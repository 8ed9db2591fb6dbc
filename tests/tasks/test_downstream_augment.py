"""Labels and points go where `augment_images` moves their image: judged by images that are the labels or the points."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cinema_fast.data.loading.augmentation import AS_STORED, Augmentation
from cinema_fast.kernels.augment_images import augment_images
from cinema_fast.tasks.augment_targets import cut_boxes, move_labels, move_points

SIZE = (40, 48)
EXTENT = torch.tensor([[40, 44]])
moves = st.fixed_dictionaries({
    "zoom": st.floats(0.8, 1.3), "angle": st.floats(-3.2, 3.2),
    "shift": st.tuples(st.floats(-8, 8), st.floats(-8, 8)), "flip": st.tuples(st.booleans(), st.booleans()),
})  # fmt: skip
parts = st.sets(st.sampled_from(["zoom", "angle", "shift", "flip"]), min_size=1)


def drawn(move: dict, only: set[str]) -> Augmentation:
    """One image's augmentation of some of the moves."""
    return Augmentation(**{name: torch.tensor([move[name]]) for name in only})


def disc(at, radius: float, size=SIZE) -> np.ndarray:
    grid = np.meshgrid(*map(np.arange, size[:2]), indexing="ij")
    inside = np.hypot(grid[0] - at[0], grid[1] - at[1]) < radius
    return inside if len(size) == 2 else np.repeat(inside[..., None], size[2], 2)


@settings(max_examples=60, deadline=None)
@given(moves, parts)
def test_labels_go_where_the_image_goes(move, only):
    """One class, and an image that is bright where it is: in linear interpolation more than half is the class."""
    augment = drawn(move, only)
    linear = augment._replace(angle=augment.angle if augment.angle is not None else torch.zeros(1))
    mask = torch.from_numpy(disc((17, 25), 9)[None].astype(np.uint8))
    labels = move_labels(3 * mask, EXTENT, augment, 4)
    image = augment_images(255 * mask, EXTENT, **linear._asdict())[0]
    assert set(labels.unique().tolist()) <= {0, 3} and labels.dtype == torch.int64
    clear = (image - 0.5).abs() > 0.02  # where rounding decides nothing
    assert torch.equal(labels[0][clear] == 3, (image > 0.5)[clear])
    assert not labels[0, :, 44:].any()  # beyond the extent


@settings(max_examples=30, deadline=None)
@given(moves, parts)
def test_every_class_of_a_volume_goes_where_its_image_goes(move, only):
    size, extent = (*SIZE, 5), torch.tensor([[40, 44, 4]])
    outer, inner = disc((18, 22), 12, size), disc((18, 22), 6, size)
    labels = torch.from_numpy(np.select([inner, outer], [1, 2], 0).astype(np.uint8))[None]
    labels[:, :, :, 4:] = 0
    augment = drawn(move, only)
    moved = move_labels(labels, extent, augment, 3)[0]
    shares = [augment_images((labels == v).byte() * 255, extent, **augment._asdict())[0] for v in (1, 2)]
    for value, share in zip((1, 2), shares):
        others = torch.stack([s for v, s in zip((1, 2), shares) if v != value] + [1 - sum(shares)]).amax(0)
        clear = (share - others).abs() > 0.02
        assert torch.equal((moved == value)[clear], (share > others)[clear])


@settings(max_examples=60, deadline=None)
@given(moves, parts, st.tuples(st.floats(8, 31), st.floats(8, 35)))
def test_points_go_where_a_dot_goes(move, only, at):
    """The centre of mass of a smooth dot is its point, before and after, to a tenth of a pixel."""
    augment = drawn(move, only)
    grid = torch.meshgrid(*map(torch.arange, SIZE), indexing="ij")
    dot = torch.exp(-((grid[0] - at[0]) ** 2 + (grid[1] - at[1]) ** 2) / (2 * 2.0**2))
    point = move_points(torch.tensor([[at]]), EXTENT, augment)[0, 0]
    if not ((point > 8) & (point < torch.tensor([31.0, 35.0]))).all():
        return  # a dot that is cut off has another centre
    image = augment_images((255 * dot).byte()[None], EXTENT, **augment._asdict())[0].double()
    image = (image - 0.1).clamp(min=0)  # bicubic interpolation undershoots beside the dot
    found = torch.stack([(image * g).sum() / image.sum() for g in grid])
    assert (found - point).abs().max() < 0.1


def test_what_is_not_moved_stays_to_the_bit():
    labels = torch.randint(0, 4, (2, *SIZE), dtype=torch.uint8)
    points = torch.tensor([[[3.5, 7.25], [float("nan"), 2.0]]]).repeat(2, 1, 1)
    extent = EXTENT.repeat(2, 1)
    only_bright = AS_STORED._replace(gamma=torch.full((2,), 0.7))
    for augment in (AS_STORED, only_bright):
        assert torch.equal(move_labels(labels, extent, augment, 4), labels.long())
        moved = move_points(points, extent, augment)
        assert torch.equal(moved.nan_to_num(-1), points.double().nan_to_num(-1))


def test_an_unknown_point_stays_unknown_and_touches_no_other():
    points = torch.tensor([[[float("nan"), 4.0], [10.0, 20.0]]])
    move = {"angle": 0.7, "shift": (3.0, -2.0), "flip": (True, False)}
    augment = drawn(move, set(move))
    moved = move_points(points, EXTENT, augment)
    assert moved[0, 0].isnan().all() and moved[0, 1].isfinite().all()


def test_a_quarter_turn_is_exact():
    """From the first axis to the second, about the middle: (x, y) goes to (-y, x)."""
    turn = Augmentation(angle=torch.tensor([np.pi / 2], dtype=torch.float64))
    point = move_points(torch.tensor([[[5.0, 7.0]]]), torch.tensor([[11, 11]]), turn)
    torch.testing.assert_close(point[0, 0], torch.tensor([3.0, 5.0], dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(10, 15), (10, 15, 5)])
def test_boxes(size):
    torch.manual_seed(0)
    n = 10_000
    holes = cut_boxes(torch.ones(n, 2, *size), 0.2) == 0
    assert torch.equal(holes[:, 0], holes[:, 1])  # the same in all frames of an example
    holes = holes[:, 0]
    sides = [round(0.2 * n) for n in size]
    cut = holes.flatten(1).any(1)
    assert abs(cut.float().mean() - 0.5) < 4 * 0.5 / n**0.5  # four standard errors
    for axis, side in enumerate(sides):  # one interval of the side's length along every axis
        along = holes[cut].amax([a + 1 for a in range(len(size)) if a != axis]).int()
        assert (along.sum(1) == side).all() and ((along.diff(dim=1) == 1).sum(1) + along[:, 0] == 1).all()
    assert (holes[cut].flatten(1).sum(1) == np.prod(sides)).all()
    # a corner lies in one of all places of a box: as often as that is
    places = np.prod([n - side + 1 for n, side in zip(size, sides)])
    corner = holes[(slice(None), *[0] * len(size))].float().mean().item()
    assert abs(corner - 0.5 / places) < 4 * (0.5 / places / n) ** 0.5


def test_boxes_are_a_function_of_the_seed_and_can_be_left_out():
    images = torch.rand(8, 1, 16, 16)
    first, second = (torch.manual_seed(3) and cut_boxes(images, 0.3) for _ in range(2))
    assert torch.equal(first, second)
    assert cut_boxes(images, 0.0) is images
