"""The crops of DINO self-distillation, cut from stored images on their device.

Of each image two global crops and several local ones, each changed by itself: a random box is resized, flipped, changed
in brightness and contrast, blurred and solarised (Caron et al., "Emerging properties in self-supervised vision
transformers", ICCV 2021, and its public recipe, without colours).

Random words: Philox4x32-10 with key = seed and counter = (crop, image number, step, purpose). The crops of an image do
not depend on the rest of its batch.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...common.checks import check
from ...kernels.augment_images.torch_form import beyond, min_max
from ...kernels.philox import philox4x32
from .image_choice import Images
from .sampler import UNIT

N_GLOBAL = 2
# Word 3 of the Philox counter, as in `sampler` and `image_choice`: boxes to try, then two purposes for what follows.
FOR_CROPS = 0x8000_0200
TRIES = 10
CUBIC = -0.5  # Keys' cubic convolution with the parameter of antialiased bicubic resizing in PyTorch and PIL
MEAN = DEVIATION = 0.25  # about those of images in [0, 1]
NO_BLUR = 1e4  # in place of 1 / (2 sigma^2): exp(-1e4) is 0 in float32, so the matrix of the blur is the identity


@dataclass(frozen=True)
class CropOptions:
    """How the crops of self-distillation (presets cmrfm-*) are drawn; the defaults are DINO's."""

    # smallest and largest share of an image's area that a global crop shows
    global_area: tuple[float, float] = (0.4, 1.0)
    # the same of a local crop
    local_area: tuple[float, float] = (0.05, 0.4)
    # smallest and largest ratio of a crop's sides in the image, X to Y
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    # probability that a crop is mirrored along X
    flip: float = 0.5
    # probability that a crop's brightness and contrast change
    jitter: float = 0.8
    # largest change of the brightness, as a share of it
    brightness: float = 0.4
    # largest change of the contrast, as a share of it
    contrast: float = 0.4
    # probability of a blur: of the first global crop, of the second, of each local one
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    # smallest and largest standard deviation of the blur, in pixels of the crop
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    # probability that the second global crop is solarised: a brightness x of 0.5 and more becomes 1 - x
    solarise: float = 0.2

    def validate(self) -> None:
        """Raise ValueError naming the option that is out of range.

        The config that holds this one calls it, so that the command line reports the error in one line.
        """
        ours = partial(check, self, prefix="crop.")
        ours("global_area", "local_area", valid=lambda x: len(x) == 2 and 0 < x[0] <= x[1] <= 1,
             must="takes LOW HIGH with 0 < LOW <= HIGH <= 1")  # fmt: skip
        ours("aspect", "blur_sigma", valid=lambda x: len(x) == 2 and 0 < x[0] <= x[1] < math.inf,
             must="takes LOW HIGH with 0 < LOW <= HIGH")  # fmt: skip
        ours("flip", "jitter", "solarise", valid=lambda x: 0 <= x <= 1, must="is a probability, between 0 and 1")
        ours("blur", valid=lambda x: len(x) == 3 and all(0 <= share <= 1 for share in x),
             must="takes three probabilities, between 0 and 1")  # fmt: skip
        ours("brightness", "contrast", valid=lambda x: 0 <= x <= 1, must="must lie in 0..1")

    def to_dict(self) -> dict:
        """Plain values for YAML and checkpoints."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


@dataclass(frozen=True)
class CropRecipe(CropOptions):
    """`CropOptions` with the crops' sizes; the defaults are those of Jacob et al. (arXiv 2410.01665).

    global_size, local_size: sides of the crops in pixels. n_local: local crops of an image.

    Raises ValueError naming what is out of range.
    """

    global_size: int = 192
    local_size: int = 96
    n_local: int = 8

    def __post_init__(self):
        self.validate()
        for name, least in (("global_size", 1), ("local_size", 1), ("n_local", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"CropRecipe.{name} must be at least {least}, got {getattr(self, name)}")


class CropDraws(NamedTuple):
    """What was drawn for C crops of N images.

    low, sides (C, N, 2) int64: first pixel and size of each box. flip, solarise (C, N) bool.
    brightness, contrast (C, N) float32: factors, 1 where they do not change. blur (C, N) float32: 1 / (2 sigma^2) of
        the Gaussian in pixels of the crop, NO_BLUR where there is none.
    """

    low: Tensor
    sides: Tensor
    flip: Tensor
    brightness: Tensor
    contrast: Tensor
    blur: Tensor
    solarise: Tensor


def cut_crops(images: Images, recipe: CropRecipe, *, step: Tensor, seed: int) -> list[Tensor]:
    """The crops of N images, each of which is scaled to [0, 1] by its own range first (a constant image to 0).

    A box is resized as by `interpolate(image[box], mode="bicubic", antialias=True)` and clamped to [0, 1]; pixels
    beyond it are not seen. It is mirrored along X: DINO mirrors horizontally, and that is the first axis of a stored
    image (X, Y). Brightness is scaled, then contrast about the crop's mean, with a clamp to [0, 1] after each. The
    Gaussian of the blur is normalised within the crop, so that its border stays as bright as it is.

    Args:
        images: see `Images`; N of them. step (1,) int64, on their device. seed: 64-bit key.

    Returns:
        [global 0, global 1, local 0, ...], each (N, 1, S, S) float32 in [0, 1].

    Raises:
        ValueError: shapes or dtypes of `images` or `step` that do not fit.
    """
    _check(images, step)
    scaled = min_max(images.pixels.float(), beyond(images.extent, images.pixels.shape[1:]))
    columns = scaled.mT.contiguous()
    drawn = draw_crops(images.number, images.extent, recipe, step=step, seed=seed)
    crops = []
    for chosen, size in ((slice(N_GLOBAL), recipe.global_size), (slice(N_GLOBAL, None), recipe.local_size)):
        group = CropDraws(*(part[chosen] for part in drawn))
        if len(group.flip):
            crops += list(change_crops_(resize_boxes(columns, group, size), group).unsqueeze(2))
    return crops


def draw_crops(number: Tensor, extent: Tensor, recipe: CropRecipe, *, step: Tensor, seed: int) -> CropDraws:
    """Draw C = 2 + `recipe.n_local` crops of each of N images; number (N,), extent (N, 2), step (1,) int64.

    Boxes have the distribution of torchvision's `RandomResizedCrop`: the area and the logarithm of the sides' ratio are
    uniform, and so is the position; the first of ten boxes that fit into the image counts, else the largest central one
    whose ratio is allowed.
    """
    device, n_crops = number.device, N_GLOBAL + recipe.n_local
    crop = torch.arange(n_crops, device=device).view(-1, 1, 1)
    purpose = FOR_CROPS + torch.arange(TRIES + 2, device=device)
    words = philox4x32(seed, crop, number.view(-1, 1), step, purpose)  # four, (C, N, TRIES + 2)
    low, sides = _boxes([word[..., :TRIES] for word in words], extent, crop < N_GLOBAL, recipe)

    flip, jitter, brightness, contrast = (word[..., TRIES] * UNIT for word in words)
    blur, sigma, solarise, _ = (word[..., TRIES + 1] * UNIT for word in words)
    crop = crop.squeeze(2)
    first, second, local = recipe.blur
    blur_share = torch.full_like(crop, local, dtype=torch.float64)
    blur_share.masked_fill_(crop == 0, first).masked_fill_(crop == 1, second)
    changes = jitter < recipe.jitter
    factors = [
        (1 + most * (2 * word - 1)).where(changes, 1.0).float()
        for most, word in ((recipe.brightness, brightness), (recipe.contrast, contrast))
    ]
    sigma = _between(recipe.blur_sigma, sigma)
    return CropDraws(
        low,
        sides,
        flip < recipe.flip,
        *factors,
        (0.5 / sigma.square()).clamp(max=NO_BLUR).float().masked_fill_(blur >= blur_share, NO_BLUR),
        (solarise < recipe.solarise) & (crop == 1),
    )


def _between(bounds: tuple[float, float], word: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * word


def _boxes(words: list[Tensor], extent: Tensor, is_global: Tensor, recipe: CropRecipe) -> tuple[Tensor, Tensor]:
    """First pixel and size (C, N, 2) of each box; words: four (C, N, TRIES) for area, ratio and position."""
    area_word, aspect_word = (word * UNIT for word in words[:2])
    share = _between(recipe.global_area, area_word).where(is_global, _between(recipe.local_area, area_word))
    area = share * extent.prod(1).view(-1, 1)
    least, most = recipe.aspect
    aspect = _between((math.log(least), math.log(most)), aspect_word).exp()
    sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], -1).round().long()  # (C, N, TRIES, 2)
    room = extent.unsqueeze(1)
    fits = ((sides > 0) & (sides <= room)).all(-1)
    low = torch.stack(words[2:], -1) * (room - sides + 1) >> 32

    # the central box stands after the tries, and fits
    ratios = torch.stack([extent[:, 1] * most, extent[:, 0] / least], 1)
    central = ratios.round().long().minimum(extent).clamp(min=1).unsqueeze(1).expand(len(sides), -1, -1, -1)
    sides = torch.cat([sides, central], 2)
    low = torch.cat([low, (room - central) // 2], 2)
    fits = nn.functional.pad(fits, (0, 1), value=True)
    first = fits.int().argmax(2, keepdim=True).unsqueeze(3).expand(-1, -1, -1, 2)  # of several largest, the first
    return low.gather(2, first).squeeze(2), sides.gather(2, first).squeeze(2)


def resize_boxes(columns: Tensor, drawn: CropDraws, size: int) -> Tensor:
    """The boxes of images (N, Y, X) float32, resized and flipped: (C, N, size, size), clamped to [0, 1].

    Antialiased bicubic interpolation is a sparse matrix for each axis. A row of it has as few weights as the largest
    box needs, wherever the box is, and its product is a weighted sum of that many of the image's lines.
    """
    (n, *room), n_crops = columns.shape, len(drawn.flip)
    low, sides, flip = (part.flatten(0, 1) for part in (drawn.low, drawn.sides, drawn.flip))
    image = torch.arange(n, device=columns.device).repeat(n_crops)
    box = torch.arange(n_crops * n, device=columns.device)
    lines = _weighted_lines(columns, image, *_cubic_weights(low[:, 1], sides[:, 1], size, room[0]))
    lines = lines.mT.contiguous()  # (boxes, X, size)
    crops = _weighted_lines(lines, box, *_cubic_weights(low[:, 0], sides[:, 0], size, room[1], flip))
    return crops.clamp_(0, 1).view(n_crops, n, size, size)


def _cubic_weights(
    low: Tensor, length: Tensor, size: int, room: int, flip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pixels (boxes, size, K) int64 that each output pixel sees along an axis of `room` pixels, and their weights.

    Output pixel i shows the box at (i + 1/2) length / size from its edge. A pixel at distance d from there has the
    weight of Keys' cubic at d / max(length / size, 1), and the weights within the box are divided by their sum.
    low, length (boxes,) int64: first pixel and size. flip (boxes,) bool: which boxes are reversed.
    """
    taps = min(math.ceil(4 * max(room / size, 1)), room)  # pixels within two of the widest cubic's units
    output = torch.arange(size, device=low.device)
    if flip is not None:
        output = output.where(~flip[:, None], size - 1 - output)
    low, length = low.view(-1, 1), length.view(-1, 1)
    scale = length.double() / size
    wide = scale.clamp(min=1)
    centre = (output + 0.5) * scale + low
    first = (centre - 2 * wide + 0.5).floor().long().clamp(0, room - taps)
    pixel = first.unsqueeze(2) + torch.arange(taps, device=low.device)
    # float32 does for a distance that is a whole number and a fraction, each exact
    whole = centre.floor().long()
    fraction = (0.5 - (centre - whole)).float()
    d = ((pixel - whole.unsqueeze(2)).float() + fraction.unsqueeze(2)).div_(wide.float().unsqueeze(2))
    d = d.abs_().clamp_(max=2)
    # factors instead of sums of powers, which would cancel near the zeros at 1 and 2
    near = (1 - d) * (1 + d - (CUBIC + 2) * d.square())
    far = CUBIC * (d - 1) * (2 - d).square()
    inside = (pixel >= low.unsqueeze(2)) & (pixel < (low + length).unsqueeze(2))
    weight = near.where(d <= 1, far).masked_fill_(~inside, 0.0)
    return pixel, weight.div_(weight.sum(2, keepdim=True))


def _weighted_lines(images: Tensor, image: Tensor, pixel: Tensor, weight: Tensor) -> Tensor:
    """(boxes, size, L): sums of lines `pixel` of images (n, lines, L) with `weight`, both (boxes, size, K).

    image (boxes,) int64: the image of each box.
    """
    line = image.view(-1, 1, 1) * images.shape[1] + pixel
    sums = nn.functional.embedding_bag(
        line.flatten(0, 1), images.flatten(0, 1), mode="sum", per_sample_weights=weight.flatten(0, 1)
    )
    return sums.view(*line.shape[:2], -1)


def change_crops_(crops: Tensor, drawn: CropDraws) -> Tensor:
    """Brightness, contrast, blur and solarisation of crops (C, N, S, S) in [0, 1], which are overwritten."""
    brightness, contrast, blur, solarise = (
        part.view(*part.shape, 1, 1) for part in (drawn.brightness, drawn.contrast, drawn.blur, drawn.solarise)
    )
    crops.mul_(brightness).clamp_(0, 1)
    mean = crops.mean((2, 3), keepdim=True)
    crops.mul_(contrast).add_(mean * (1 - contrast)).clamp_(0, 1)
    pixel = torch.arange(crops.shape[-1], device=crops.device)
    gaussian = (-pixel.square() * blur.squeeze(3)).exp()  # (C, N, S) by distance: few exponentials
    matrix = gaussian.flatten(0, 1)[:, (pixel[:, None] - pixel).abs()]
    matrix /= matrix.sum(2, keepdim=True)
    blurred = (matrix @ crops.flatten(0, 1) @ matrix.mT).clamp_(0, 1).view_as(crops)
    return torch.where(solarise & (blurred >= 0.5), 1 - blurred, blurred)


def _check(images: Images, step: Tensor) -> None:
    n = len(images.pixels)
    if images.pixels.ndim != 3 or images.pixels.dtype != torch.uint8:
        raise ValueError(
            f"cut_crops: images.pixels must be uint8 (N, X, Y), got {images.pixels.dtype} {tuple(images.pixels.shape)}"
        )
    for name, shape in (("extent", (n, 2)), ("number", (n,))):
        part = getattr(images, name)
        if part.shape != shape or part.dtype != torch.int64:
            raise ValueError(f"cut_crops: images.{name} must be int64 {shape}, got {part.dtype} {tuple(part.shape)}")
    if step.shape != (1,) or step.dtype != torch.int64:
        raise ValueError(f"cut_crops: step must be int64 (1,), got {step.dtype} {tuple(step.shape)}")


def central_squares(pixels: Tensor, extent: Tensor, size: int) -> Tensor:
    """The largest central square of each image, resized without other changes: (N, 1, size, size) float32 in [0, 1].

    pixels (N, X, Y) uint8, extent (N, 2) int64: as in `Images`.
    """
    scaled = min_max(pixels.float(), beyond(extent, pixels.shape[1:]))
    side = extent.amin(1, keepdim=True).expand(-1, 2)
    low, plain = (extent - side) // 2, torch.zeros(1, len(extent), dtype=torch.bool, device=extent.device)
    drawn = CropDraws(low[None], side[None], plain, *[plain] * 4)
    return resize_boxes(scaled.mT.contiguous(), drawn, size)[0].unsqueeze(1)


def standardised(images: Tensor) -> Tensor:
    """Images in [0, 1] as the network sees them: about mean 0 and deviation 1.

    Without this, all outputs of a fresh network are nearly the same, and the teacher's tell it little.
    """
    return (images - MEAN) / DEVIATION
