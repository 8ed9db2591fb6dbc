"""The options of pre-training besides those of every run: the one source of their defaults and checks."""

import dataclasses
import math
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from ..common.checks import check
from ..common.views import CLIP
from ..models.config import preset
from ..train.options import RunOptions


@dataclass(frozen=True)
class MaskConfig:
    """Whether and how motion guides the masks (Kim et al., "HeartMAE", ML4H 2024)."""

    # how masked tokens are drawn: uniformly, or weighted by motion
    guidance: Literal["none", "motion"] = "none"
    # mask, or keep visible, the patches that move
    mode: Literal["mask", "keep"] = "mask"
    # how much motion counts in the weights: 0 not at all (uniform), 1 fully
    strength: float = 1.0
    # the weights are raised to the power 1 / temperature: below 1 sharper, above 1 flatter
    temperature: float = 0.5
    # share of the steps over which the strength rises from 0
    warmup: float = 0.0

    def validate(self) -> None:
        """Raise ValueError naming the option that is out of range, or has no effect.

        The config that holds this one calls it, so that the command line reports the error in one line.
        """
        ours = partial(check, self, prefix="mask.")
        ours("strength", valid=lambda x: 0 <= x <= 1, must="must lie in 0..1")
        ours("temperature", valid=lambda x: 0 < x < math.inf, must="must be above 0")
        ours("warmup", valid=lambda x: 0 <= x <= 1, must="is a share of the steps, between 0 and 1")
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        if self.guidance == "none" and changed:
            raise ValueError(f"--mask.{changed[0]} has no effect without --mask.guidance motion")


@dataclass(frozen=True)
class PretrainConfig(RunOptions):
    """Pre-train a masked autoencoder on a cine store: CineMA on single frames of all views, HeartMAE on clips.

    The learning rate is not scaled with the batch size; 1e-3 is the published one for 64 studies a step.
    """

    FREE = RunOptions.FREE | {"init_from", "split"}  # of the split, the studies held out may not change
    LATER: ClassVar = {**RunOptions.LATER, "mask": dataclasses.asdict(MaskConfig()), "motion": "stored"}

    _: KW_ONLY
    # share of the tokens of each view that is masked
    mask_ratio: float = 0.75
    # share of the masked tokens that is decoded and predicted; 1: all, less is faster
    decode_ratio: float = 1.0
    # motion-guided masking
    mask: MaskConfig = field(default_factory=MaskConfig)
    # where the motion comes from: maps in the store (prepare --motion), or optical flow of the augmented clips of each
    # step
    motion: Literal["stored", "online"] = "stored"
    # share of the studies held out of training and evaluated at the end
    holdout: float = 0.0
    # CSV with the columns study and split, in place of --holdout: the studies of val and test are held out, such as
    # those of a public data set (STORE/split.csv)
    split: Path | None = None
    # initial weights: the folder of a run, or a .safetensors or torch file; views that it lacks start at random
    init_from: Path | None = None

    def __post_init__(self):
        super().__post_init__()
        check(self, "mask_ratio", valid=lambda x: 0 < x < 1, must="must lie between 0 and 1")
        check(self, "decode_ratio", valid=lambda x: 0 < x <= 1, must="must be above 0 and at most 1")
        check(self, "holdout", valid=lambda x: 0 <= x < 1, must="is a share of the studies, at least 0 and below 1")
        if self.split and self.holdout:
            raise ValueError(f"--holdout {self.holdout:g} has no effect beside --split, which names the studies to "
                             "hold out: give one of them")  # fmt: skip
        self.mask.validate()
        if self.motion == "online" and self.mask.guidance == "none":
            raise ValueError("--motion online has no effect without --mask.guidance motion")
        if self.motion == "online" and CLIP not in preset(self.preset).views:
            raise ValueError(
                f"--motion online: preset {self.preset!r} reads single frames, which do not move; use the maps of the "
                "store (--motion stored)"
            )
