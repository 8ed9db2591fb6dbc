"""Which views and slices of a study become images."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from tolerances import P_VALUE
from torch import Tensor

from cinema_fast.data.loading.image_choice import Images, choose_images

STEP = torch.tensor([3])
SIZES = {"sax": (6, 9, 5), "lax_2c": (8, 4), "lax_4c": (5, 7)}


def stored(n: int, sizes: dict[str, tuple[int, ...]] = SIZES) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Frames whose pixels differ, smaller than their tensors by up to one pixel and two slices, and their extents."""
    generator = torch.Generator().manual_seed(0)
    frames, extent = {}, {}
    for view, size in sizes.items():
        frames[view] = torch.randint(1, 256, (n, *size), generator=generator, dtype=torch.uint8)
        extent[view] = torch.tensor(size).repeat(n, 1)
        for axis in range(len(size)):
            extent[view][:, axis] -= torch.arange(n) // (axis + 1) % (axis + 1 if axis == 2 else 2)
            beyond = torch.arange(size[axis]) >= extent[view][:, axis, None]
            frames[view].movedim(axis + 1, 1)[beyond] = 0
    return frames, extent


def choice(n: int, per_study: int, sizes: dict[str, tuple[int, ...]] = SIZES) -> Images:
    return choose_images(*stored(n, sizes), torch.arange(n), step=STEP, seed=7, per_study=per_study)


def slices_shown(images: Images, frames: Tensor, view: int, per_study: int) -> list[list[int]]:
    """Of each study the slices of a stack that its images of this view show, found by their pixels."""
    x, y = frames.shape[1:3]
    return [
        [
            int((frames[row // per_study] == images.pixels[row, :x, :y, None]).all((0, 1)).int().argmax())
            for row in range(study * per_study, (study + 1) * per_study)
            if images.view[row] == view
        ]
        for study in range(len(frames))
    ]


def test_images_are_slices_of_the_frames_within_their_extent():
    frames, extent = stored(12)
    images = choose_images(frames, extent, torch.arange(12), step=STEP, seed=7, per_study=4)
    assert images.pixels.shape == (48, 8, 9) and images.pixels.dtype == torch.uint8
    for row in range(48):
        study, view = row // 4, list(SIZES)[images.view[row]]
        x, y, *n_slices = extent[view][study].tolist()
        assert images.extent[row].tolist() == [x, y]
        frame = frames[view][study, :x, :y]
        shown = images.pixels[row, :x, :y]
        candidates = [frame[..., z] for z in range(*n_slices)] if n_slices else [frame]
        assert sum(torch.equal(shown, candidate) for candidate in candidates) == 1
        assert images.pixels[row].count_nonzero() == shown.count_nonzero()


def test_views_come_in_rounds_without_repetition():
    views = choice(50, 8).view.view(50, 8)
    for first in (0, 3):
        assert (views[:, first : first + 3].sort(1).values == torch.arange(3)).all()
    assert (views[:, 6] != views[:, 7]).all()
    assert (views[:, :3] != views[:, 3:6]).any()
    assert torch.equal(choice(50, 2).view.view(50, 2), choice(50, 3).view.view(50, 3)[:, :2])


def test_views_are_equally_likely_in_every_order():
    orders = Counter(tuple(order) for order in choice(3000, 3).view.view(-1, 3).tolist())
    assert len(orders) == 6 and chisquare(list(orders.values())).pvalue > P_VALUE
    firsts = torch.bincount(choice(3000, 1).view)
    assert chisquare(firsts.numpy()).pvalue > P_VALUE


def test_slices_are_uniform_within_the_extent_and_drawn_anew_in_each_round():
    n = 1500
    sizes = {"sax": (6, 9, 4)}
    frames, extent = stored(n, sizes)
    images = choose_images(frames, extent, torch.arange(n), step=STEP, seed=7, per_study=2)
    pairs = slices_shown(images, frames["sax"], 0, 2)
    for n_slices in extent["sax"][:, 2].unique().tolist():
        counts = Counter(tuple(pair) for pair, e in zip(pairs, extent["sax"]) if e[2] == n_slices)
        assert len(counts) == n_slices**2 and chisquare(list(counts.values())).pvalue > P_VALUE


def test_a_study_is_the_same_in_any_batch():
    frames, extent = stored(9)
    slot = torch.arange(9) + 20
    whole = choose_images(frames, extent, slot, step=STEP, seed=7, per_study=4)
    for chosen in ([8, 0, 3], [5]):
        rows = torch.cat([torch.arange(4) + 4 * study for study in chosen])
        few_frames, few_extents = ({view: part[chosen] for view, part in parts.items()} for parts in (frames, extent))
        some = choose_images(few_frames, few_extents, slot[chosen], step=STEP, seed=7, per_study=4)
        assert all(torch.equal(few, many[rows]) for few, many in zip(some, whole))
    assert whole.number.tolist() == list(range(80, 116))
    for other in ({"step": STEP + 1, "seed": 7}, {"step": STEP, "seed": 8}):
        assert not torch.equal(choose_images(frames, extent, slot, **other, per_study=4).view, whole.view)


@pytest.mark.parametrize(
    "argument, change",
    [
        ("frames", {"frames": {}}),
        ("frames", {"frames": {"clip": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}}),
        (r"frames\['sax'\]", {"frames": {"sax": torch.zeros(2, 4, 4, 3)}}),
        (r"frames\['sax'\]", {"frames": {"sax": torch.zeros(3, 4, 4, 3, dtype=torch.uint8)}}),
        (r"extent\['sax'\]", {"extent": {"sax": torch.ones(2, 2, dtype=torch.int64)}}),
        (r"extent\['sax'\]", {"extent": {}}),
        ("slot", {"slot": torch.zeros(2)}),
        ("step", {"step": torch.tensor([1, 2])}),
        ("step", {"step": torch.tensor(1)}),
        ("per_study", {"per_study": 0}),
    ],
)
def test_what_does_not_fit_is_refused_by_name(argument, change):
    frames, extent = stored(2, {"sax": (4, 4, 3)})
    given = {"frames": frames, "extent": extent, "slot": torch.arange(2), "step": STEP, "seed": 7, "per_study": 1}
    with pytest.raises(ValueError, match=f"choose_images: {argument} "):
        choose_images(**given | change)
