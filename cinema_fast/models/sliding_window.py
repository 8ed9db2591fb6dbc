"""Predicts maps of images larger (or smaller) than the model's size, from half-overlapping windows of that size.

Windows start every half window from the first pixel on, and the last one ends with the image. Predictions of a pixel
are averaged with equal weights. This is the grid of Fu et al. (2025) and of TorchIO's GridSampler (Pérez-García et al.,
2021).
"""

import itertools

import torch
from torch import Tensor, nn

VALUES = {"softmax": lambda x: x.softmax(dim=1), "sigmoid": torch.sigmoid, "value": lambda x: x}


def window_starts(size: tuple[int, ...], window: tuple[int, ...]) -> list[tuple[int, ...]]:
    """First pixels of half-overlapping windows that cover an image at least as large as a window."""
    axes = []
    for extent, width in zip(size, window):
        last, step = extent - width, width - width // 2
        axes.append([*range(0, last, step), last])
    return list(itertools.product(*axes))


@torch.no_grad()
def sliding_window(
    model: nn.Module,
    images: dict[str, Tensor],
    intensity: dict[str, Tensor] | None = None,
    *,
    average: str = "softmax",
) -> dict[str, Tensor]:
    """{view: (B, out_channels, *size) float32}: the mean over the windows that contain a pixel, with equal weights.
    Without gradients.

    Images smaller than the window are padded at the end with zeros (after scaling); the padding is cut off again. With
    several views, each forward pass takes a window of each view, and views with fewer windows start over; a window's
    prediction is then the mean over the passes that take it.

    Args:
        model: ConvUNetR, or another model whose `config.image_size` gives the windows; its training mode is not
            changed.
        images, intensity: as in the model's forward, in any size.
        average: "softmax" over the channels, "sigmoid" or "value", applied to the logits before the average.

    Raises:
        ValueError: names `average`, or the view and what does not fit.
    """
    if average not in VALUES:
        raise ValueError(f"sliding_window: average must be one of {', '.join(VALUES)}, got {average!r}")
    windows = model.config.image_size
    for view, image in images.items():
        if view in windows and image.ndim != 2 + len(windows[view]):
            raise ValueError(
                f"sliding_window: {view!r} needs (B, C, {len(windows[view])} axes), got {tuple(image.shape)}"
            )
    whole = {v: _padded(x, windows.get(v, ()), None if intensity is None else intensity[v]) for v, x in images.items()}
    starts = {v: window_starts(x.shape[2:], windows.get(v, x.shape[2:])) for v, x in whole.items()}
    sums, weights = {}, {v: x.new_zeros(x.shape[2:], dtype=torch.float32) for v, x in whole.items()}
    runs = max((len(s) for s in starts.values()), default=1)
    for i in range(runs):
        here = {v: _box(s[i % len(s)], windows.get(v, ())) for v, s in starts.items()}
        logits = model({v: x[here[v]].contiguous() for v, x in whole.items()}, intensity=intensity)
        for view, found in logits.items():
            values = VALUES[average](found.float())
            if view not in sums:
                sums[view] = values.new_zeros(*values.shape[:2], *whole[view].shape[2:])
            n = len(starts[view])
            weight = 1 / len(range(i % n, runs, n))  # 1 / number of passes that take this window
            sums[view][here[view]].add_(values, alpha=weight)
            weights[view][here[view][2:]] += weight
    return {v: (total / weights[v])[_box([0] * (images[v].ndim - 2), images[v].shape[2:])] for v, total in sums.items()}


def _box(start, extent) -> tuple[slice, ...]:
    """Index of a part of (B, C, *size)."""
    return (slice(None), slice(None), *(slice(first, first + n) for first, n in zip(start, extent)))


def _padded(image: Tensor, window: tuple[int, ...], intensity: Tensor | None) -> Tensor:
    """The image, padded at the end to at least the window, with values that are 0 after scaling."""
    size = [max(extent, width) for extent, width in zip(image.shape[2:], window)]
    if not window or size == list(image.shape[2:]):
        return image
    if intensity is not None:  # in its dtype, because an offset need not be whole
        image = image.float()
    padded = image.new_zeros(*image.shape[:2], *size)
    if intensity is not None:
        padded += intensity[:, :1].view(-1, *[1] * (image.ndim - 1))
    padded[_box([0] * len(size), image.shape[2:])] = image
    return padded
