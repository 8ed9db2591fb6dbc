"""The crops of DINO self-distillation: what is drawn, and what the crops show."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare, ks_2samp, kstest
from tolerances import P_VALUE, assert_close
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cinema_fast.data.loading.crops import CropDraws, CropRecipe, change_crops_, cut_crops, draw_crops, resize_boxes
from cinema_fast.data.loading.image_choice import Images, choose_images

STEP = torch.tensor([3])
SMALL = CropRecipe(global_size=48, local_size=20, n_local=3)
PLAIN = replace(SMALL, flip=0, jitter=0, blur=(0, 0, 0), solarise=0)
EXTENTS = [(40, 51), (63, 37), (20, 24), (64, 64)]


def images_of(*extents: tuple[int, int], size: tuple[int, int] = (64, 64), beyond: int = 0) -> Images:
    """Images of random values in 10..199."""
    rng = np.random.default_rng(0)
    pixels = np.full((len(extents), *size), beyond, np.uint8)
    for image, (x, y) in zip(pixels, extents):
        image[:x, :y] = rng.integers(10, 200, (x, y))
    n = len(extents)
    return Images(torch.from_numpy(pixels), torch.tensor(extents), torch.zeros(n, dtype=torch.int64), torch.arange(n))


def part(images: Images, chosen: list[int]) -> Images:
    return Images(*(values[chosen] for values in images))


def draws(recipe: CropRecipe, n: int, extent: tuple[int, int] = (10_000, 10_000), seed: int = 11) -> CropDraws:
    return draw_crops(torch.arange(n), torch.tensor([extent]).expand(n, 2), recipe, step=STEP, seed=seed)


def unchanged(n_crops: int, n: int, **changes: Tensor) -> CropDraws:
    """Draws that change nothing but what is given; boxes are left out."""
    same = {"brightness": 1.0, "contrast": 1.0, "blur": 1e4}
    ones = torch.ones(n_crops, n)
    kept = {name: ones * value for name, value in same.items()} | {"solarise": ones < 0, "flip": ones < 0}
    return CropDraws(**{"low": None, "sides": None} | kept | changes)


def interpolated(image: Tensor, low: Tensor, sides: Tensor, flip: bool, size: int) -> Tensor:
    """PyTorch's antialiased bicubic in float64 of one box, clamped and flipped."""
    (x, y), (width, height) = low.tolist(), sides.tolist()
    box = image[x : x + width, y : y + height].double()[None, None]
    crop = torch.nn.functional.interpolate(box, (size, size), mode="bicubic", antialias=True)[0, 0].clamp(0, 1)
    return crop.flip(0) if flip else crop


def scaled(pixels: Tensor) -> Tensor:
    pixels = pixels.double()
    return (pixels - pixels.min()) / (pixels.max() - pixels.min())


@pytest.mark.parametrize("size", [7, 32, 96])
def test_boxes_are_resized_as_interpolate_does(size):
    images = torch.rand(2, 75, 58, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([
        [0, 0, 75, 58], [0, 0, 58, 58], [17, 0, 58, 58], [3, 50, 7, 7], [40, 1, 33, 57], [74, 57, 1, 1], [1, 2, 2, 55],
        [21, 13, 32, 32],
    ]).unsqueeze(1).expand(-1, 2, -1)  # fmt: skip
    low, sides = boxes.split(2, 2)
    flip = torch.arange(2 * len(boxes)).view(-1, 2) % 3 == 0
    found = resize_boxes(images.mT.contiguous(), unchanged(*flip.shape, low=low, sides=sides, flip=flip), size)
    for c, n in np.ndindex(*flip.shape):
        expected = interpolated(images[n], low[c, n], sides[c, n], bool(flip[c, n]), size)
        assert_close(found[c, n], expected, name=f"box {boxes[c, n].tolist()}")


def test_crops_show_the_boxes_of_the_scaled_images():
    recipe = replace(PLAIN, flip=0.5)
    images = images_of(*EXTENTS)
    crops = cut_crops(images, recipe, step=STEP, seed=5)
    drawn = draw_crops(images.number, images.extent, recipe, step=STEP, seed=5)
    assert [crop.shape for crop in crops] == [(4, 1, 48, 48)] * 2 + [(4, 1, 20, 20)] * 3
    assert 0 < drawn.flip.sum() < drawn.flip.numel()
    for c, crop in enumerate(crops):
        assert crop.dtype == torch.float32 and crop.is_contiguous()
        for n, (x, y) in enumerate(EXTENTS):
            image = scaled(images.pixels[n, :x, :y])
            expected = interpolated(image, drawn.low[c, n], drawn.sides[c, n], bool(drawn.flip[c, n]), crop.shape[-1])
            assert_close(crop[n, 0], expected, name=f"crop {c} of image {n}")


def test_padding_is_never_seen():
    for crop, other in zip(*(cut_crops(images_of(*EXTENTS, beyond=v), SMALL, step=STEP, seed=5) for v in (0, 255))):
        assert torch.equal(crop, other)


def test_crops_of_an_image_do_not_depend_on_its_batch():
    images = images_of(*EXTENTS * 3)
    whole = cut_crops(images, SMALL, step=STEP, seed=5)
    halves = [cut_crops(part(images, chosen), SMALL, step=STEP, seed=5) for chosen in ([7, 0, 4], [1])]
    larger = Images(torch.nn.functional.pad(images.pixels, (0, 9, 0, 30)), *images[1:])
    for crop, first, second, roomy in zip(whole, *halves, cut_crops(larger, SMALL, step=STEP, seed=5)):
        assert_close(torch.cat([first, second]), crop[[7, 0, 4, 1]].double())
        assert_close(roomy, crop.double())
    again = cut_crops(images, SMALL, step=STEP, seed=5)
    assert all(torch.equal(crop, other) for crop, other in zip(whole, again))


def test_what_is_drawn_is_a_function_of_number_step_and_seed_alone():
    recipe, extent = CropRecipe(), torch.tensor([[200, 180]])
    number = torch.arange(20)
    drawn = draw_crops(number, extent.expand(20, 2), recipe, step=STEP, seed=5)
    few = draw_crops(number[[17, 2]], extent.expand(2, 2), recipe, step=STEP, seed=5)
    assert all(torch.equal(a, b[:, [17, 2]]) for a, b in zip(few, drawn))
    fewer_crops = draw_crops(number, extent.expand(20, 2), replace(recipe, n_local=2), step=STEP, seed=5)
    assert all(torch.equal(a, b[:4]) for a, b in zip(fewer_crops, drawn))
    for other in ({"step": STEP + 1, "seed": 5}, {"step": STEP, "seed": 6}):
        moved = draw_crops(number, extent.expand(20, 2), recipe, **other)
        assert (moved.low == drawn.low).float().mean() < 0.1
    assert len({tuple(box) for box in drawn.low[2:].flatten(0, 1).tolist()}) > 150  # of 160 local crops


def test_crops_that_fit_have_uniform_area_ratio_and_position():
    drawn = draws(CropRecipe(), 500)
    sides, low = drawn.sides[2:].double(), drawn.low[2:].double()  # every local box fits into a square image
    area, ratio = sides.prod(-1) / 1e8, (sides[..., 0] / sides[..., 1]).log()
    assert kstest(area.flatten(), "uniform", (0.05, 0.35)).pvalue > P_VALUE
    assert kstest(ratio.flatten(), "uniform", (math.log(3 / 4), math.log(16 / 9))).pvalue > P_VALUE
    for place in ((low + 0.5) / (10_001 - sides)).flatten(0, 1).T:
        assert kstest(place, "uniform").pvalue > P_VALUE


def test_each_position_is_equally_likely():
    drawn = draws(CropRecipe(local_area=(0.25, 0.25), aspect=(1, 1)), 600, extent=(8, 10))
    assert (drawn.sides[2:] == 4).all()  # sqrt(20) is 4.47
    x, y = drawn.low[2:].flatten(0, 1).T
    counts = torch.bincount(x * 7 + y, minlength=35)
    assert len(counts) == 35 and chisquare(counts.numpy()).pvalue > P_VALUE


def random_resized_crop(rng, extent, area, aspect) -> tuple[float, ...]:
    """One box, (x, y, width, height), by torchvision's published rules; width is along X."""
    width, height = extent
    for _ in range(10):
        target = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(width - w + 1), rng.integers(height - h + 1), w, h
    if width / height < aspect[0]:
        w, h = width, round(width / aspect[0])
    elif width / height > aspect[1]:
        w, h = round(height * aspect[1]), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


@pytest.mark.parametrize(
    "extent, area", [((60, 40), (0.4, 1.0)), ((70, 100), (0.8, 1.0)), ((90, 64), (0.9, 1.0)), ((3, 3), (0.01, 0.1))]
)
def test_boxes_that_often_do_not_fit_follow_random_resized_crop(extent, area):
    drawn = draws(CropRecipe(global_area=area), 1000, extent)
    boxes = torch.cat([drawn.low, drawn.sides], -1)[:2].flatten(0, 1).numpy()
    rng = np.random.default_rng(3)
    expected = np.array([random_resized_crop(rng, extent, area, (3 / 4, 4 / 3)) for _ in range(4000)])
    columns = [*zip(boxes.T, expected.T), (boxes[:, 2] * boxes[:, 3], expected[:, 2] * expected[:, 3])]
    for found, reference in columns:
        assert ks_2samp(found, reference).pvalue > P_VALUE


@pytest.mark.parametrize(
    "extent, aspect, box",
    [((10, 100), (3 / 4, 4 / 3), (0, 43, 10, 13)), ((100, 11), (3 / 4, 4 / 3), (42, 0, 15, 11)),
     ((30, 30), (1.2, 1.3), (0, 2, 30, 25)), ((30, 28), (3 / 4, 4 / 3), (0, 0, 30, 28))],
)  # fmt: skip
def test_where_no_box_fits_it_is_the_central_one(extent, aspect, box):
    # the whole area fits into (30, 28) only at one ratio; the draws that found it are not of interest
    drawn = draws(CropRecipe(global_area=(1, 1), aspect=aspect), 20, extent)
    boxes = torch.cat([drawn.low, drawn.sides], -1)[:2].flatten(0, 1)
    assert (boxes == torch.tensor(box)).all(1).float().mean() > 0.5
    assert extent == (30, 28) or (boxes == torch.tensor(box)).all()


def test_changes_have_the_shares_and_ranges_of_the_recipe():
    drawn = draws(CropRecipe(), 400)

    def is_share(found: Tensor, share: float) -> None:
        assert binomtest(int(found.sum()), found.numel(), share).pvalue > P_VALUE

    is_share(drawn.flip, 0.5)
    changed = drawn.brightness != 1
    assert torch.equal(changed, drawn.contrast != 1)
    is_share(changed, 0.8)
    for factor in (drawn.brightness, drawn.contrast):
        assert kstest(factor[changed], "uniform", (0.6, 0.8)).pvalue > P_VALUE
    blurred = drawn.blur < 1e4
    assert blurred[0].all()
    is_share(blurred[1], 0.1)
    is_share(blurred[2:], 0.5)
    sigma = (0.5 / drawn.blur[blurred].double()).sqrt()
    assert kstest(sigma, "uniform", (0.1, 1.9)).pvalue > P_VALUE
    is_share(drawn.solarise[1], 0.2)
    assert not drawn.solarise[[0, *range(2, 10)]].any()


def test_changes_are_independent_of_each_other_and_between_crops():
    drawn = draws(CropRecipe(jitter=1, blur=(1, 1, 1), solarise=0.5), 2000)
    sides, low = drawn.sides.double(), drawn.low.double()
    place = low / (10_000 - sides).clamp(min=1)
    columns = [
        sides.prod(-1), sides[..., 0] / sides[..., 1], place[..., 0], place[..., 1], drawn.flip, drawn.brightness,
        drawn.contrast, drawn.blur.rsqrt(),
    ]  # fmt: skip
    local = torch.stack([values[crop].double() for crop in (2, 3, 9) for values in columns])
    second = torch.stack([drawn.solarise[1].double(), *(values[1].double() for values in columns[4:])])
    for numbers in (local, second):
        correlation = torch.corrcoef(numbers) - torch.eye(len(numbers))
        assert correlation.abs().max() < 4.5 / math.sqrt(2000)


def test_changes_that_are_not_drawn_leave_the_bits():
    crops = torch.rand(2, 3, 21, 21)
    assert torch.equal(change_crops_(crops.clone(), unchanged(2, 3)), crops)


def test_brightness_and_contrast():
    crops = torch.rand(1, 2, 9, 9, generator=torch.Generator().manual_seed(1))
    brightness, contrast = torch.tensor([[1.4, 0.6]]), torch.tensor([[1.3, 0.7]])
    found = change_crops_(crops.clone(), unchanged(1, 2, brightness=brightness, contrast=contrast))
    for n in range(2):
        bright = (crops[0, n].double() * brightness[0, n]).clamp(0, 1)
        expected = (bright.mean() + contrast[0, n] * (bright - bright.mean())).clamp(0, 1)
        assert_close(found[0, n], expected)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_of_an_impulse_is_the_gaussian_and_of_a_constant_the_constant(sigma):
    crops = torch.zeros(3, 1, 31, 31)
    crops[0, 0, 15, 12] = 1
    crops[1, 0, 0, 29] = 1
    crops[2] = 0.7
    blur = torch.full((3, 1), 0.5 / sigma**2)
    found = change_crops_(crops, unchanged(3, 1, blur=blur))
    pixel = torch.arange(31, dtype=torch.float64)
    gaussian = (-(pixel[:, None] - pixel).square() / (2 * sigma**2)).exp()
    gaussian /= gaussian.sum(1, keepdim=True)  # each output pixel's weights sum to 1 within the crop
    assert_close(found[0, 0], torch.outer(gaussian[:, 15], gaussian[:, 12]))
    assert_close(found[1, 0], torch.outer(gaussian[:, 0], gaussian[:, 29]))
    assert_close(found[2, 0], torch.full((31, 31), 0.7, dtype=torch.float64))


def test_solarisation_inverts_the_bright_half_of_the_crops_that_it_is_drawn_for():
    line = torch.linspace(0, 1, 9)  # its middle is 0.5
    solarise = torch.tensor([[True, False]])
    crops = line.expand(1, 2, 9, 9).contiguous()
    once = change_crops_(crops, unchanged(1, 2, solarise=solarise))
    expected = torch.tensor([0, 0.125, 0.25, 0.375, 0.5, 0.375, 0.25, 0.125, 0])
    assert torch.equal(once[0, 0], expected.expand(9, 9)) and torch.equal(once[0, 1], line.expand(9, 9))
    assert torch.equal(change_crops_(once.clone(), unchanged(1, 2, solarise=solarise)), once)


@pytest.mark.parametrize("extent", [(20, 24), (1, 1), (2, 17)])
def test_small_images(extent):
    for crop in cut_crops(images_of(extent, size=extent), CropRecipe(), step=STEP, seed=5):
        assert ((crop >= 0) & (crop <= 1)).all()


def test_a_constant_image_gives_zero():
    images = images_of(*EXTENTS)
    images.pixels[1] = 77
    crops = cut_crops(images, replace(SMALL, solarise=0), step=STEP, seed=5)
    assert all(not crop[1].any() and crop[0].any() for crop in crops)


def test_no_value_is_read_back():
    with FakeTensorMode():  # tensors without values: to read one raises
        frames = {"sax": torch.empty(3, 20, 30, 5, dtype=torch.uint8), "lax_2c": torch.empty(3, 25, 22).byte()}
        extent = {"sax": torch.empty(3, 3).long(), "lax_2c": torch.empty(3, 2).long()}
        step = torch.empty(1).long()
        images = choose_images(frames, extent, torch.empty(3).long(), step=step, seed=5, per_study=3)
        assert [crop.shape[0] for crop in cut_crops(images, SMALL, step=step, seed=5)] == [9] * 5


def test_no_local_crops():
    assert len(cut_crops(images_of((64, 64)), replace(SMALL, n_local=0), step=STEP, seed=5)) == 2


@pytest.mark.parametrize(
    "name, value",
    [("global_size", 0), ("local_size", -1), ("n_local", -1), ("global_area", (0.5, 1.1)), ("local_area", (0.4, 0.05)),
     ("aspect", (0, 1)), ("flip", 1.5), ("jitter", -0.1), ("brightness", 2), ("contrast", -1), ("blur", (1, 2, 0)),
     ("blur", (1, 1)), ("aspect", (1,)), ("blur_sigma", (0.0, 1.0)), ("blur_sigma", (1, math.inf)),
     ("solarise", math.nan)],
)  # fmt: skip
def test_recipes_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"(--crop|CropRecipe)\.{name.replace('_', '[-_]')} "):
        CropRecipe(**{name: value})


@pytest.mark.parametrize(
    "name, change",
    [("images.pixels", lambda images: images._replace(pixels=images.pixels.float())),
     ("images.extent", lambda images: images._replace(extent=images.extent[:1])),
     ("images.number", lambda images: images._replace(number=images.number.int()))],
)  # fmt: skip
def test_images_that_do_not_fit_are_refused_by_name(name, change):
    with pytest.raises(ValueError, match=f"cut_crops: {name} "):
        cut_crops(change(images_of((64, 64), (64, 64))), SMALL, step=STEP, seed=5)
    with pytest.raises(ValueError, match="cut_crops: step "):
        cut_crops(images_of((64, 64)), SMALL, step=torch.tensor(3.0), seed=5)
