"""Options of the augmentation, and the parameters drawn for each image of a batch.

`sampler.Sampler` draws the parameters, `augment.model_input` applies them on the device.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ...common.checks import check, flag


class Augmentation(NamedTuple):
    """The parameters drawn for B images of a view, numpy arrays or tensors; None for a change that is turned off.

    zoom (B,) float32: magnification. angle (B,) float64: rotation in plane, radians from the first axis to the second.
    shift (B, 2) float32: pixels along the axes in plane. flip (B, 2) bool: which of these axes are reversed.
    gamma (B,) float32: exponent of the image in [0, 1]. noise (B,) float32: standard deviation of the noise on it.
    noise_key (B,) int64: 64 random bits that determine the noise of an image.
    """

    zoom: Any = None
    angle: Any = None
    shift: Any = None
    flip: Any = None
    gamma: Any = None
    noise: Any = None
    noise_key: Any = None

    def map(self, change: Callable, *others: "Augmentation") -> "Augmentation":
        """Apply `change` to each parameter that is not None, together with the same parameter of `others`."""
        return Augmentation(*(None if parts[0] is None else change(*parts) for parts in zip(self, *others)))


AS_STORED = Augmentation()  # no change


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the images, drawn for every study and epoch: the same for the long-axis views of a study.

    Everything but zoom is off by default, which is the published recipe of pre-training.
    """

    # smallest and largest magnification
    zoom: tuple[float, float] = (0.9, 1.1)
    # share of the images that are zoomed
    zoom_share: float = 0.5
    # largest rotation in plane, in degrees either way
    rotation: float = 0.0
    # share of the images that are rotated
    rotation_share: float = 1.0
    # largest shift along each axis in plane, in pixels either way
    translation: float = 0.0
    # share of the images that are shifted
    translation_share: float = 1.0
    # probability of a flip, for each in-plane axis
    flip: float = 0.0
    # smallest and largest gamma: intensities in 0..1 are raised to this power
    gamma: tuple[float, float] = (1.0, 1.0)
    # share of the images that get a gamma
    gamma_share: float = 1.0
    # largest standard deviation of Gaussian noise on the brightness in 0..1
    noise: float = 0.0
    # share of the images that get noise
    noise_share: float = 1.0

    def validate(self) -> None:
        """Raise ValueError naming the option that is out of range, or has no effect.

        The config that holds this one calls it, so that the command line reports the error in one line.
        """
        for name in ("zoom", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"--augment.{name} takes LOW HIGH with 0 < LOW <= HIGH, got {low} {high}")
        ours = partial(check, self, prefix="augment.")
        ours("rotation", valid=lambda x: 0 <= x <= 180, must="must lie in 0..180")
        ours("translation", valid=lambda x: 0 <= x < math.inf, must="must be a number of at least 0")
        ours("noise", valid=lambda x: 0 <= x <= 1, must="must lie in 0..1")
        shares = [field for field in dataclasses.fields(self) if field.name.endswith("_share")]
        names = ["flip", *(field.name for field in shares)]
        ours(*names, valid=lambda x: 0 <= x <= 1, must="is a share of the images, between 0 and 1")
        for field in shares:
            changed = field.name.removesuffix("_share")
            if getattr(self, field.name) != field.default and getattr(self, changed) in (0.0, (1.0, 1.0)):
                share, change = flag(f"augment.{field.name}"), flag(f"augment.{changed}")
                raise ValueError(f"{share} has no effect without {change}; to turn it off give {share} 0 alone")

    def to_dict(self) -> dict:
        """Plain values for YAML and checkpoints."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
