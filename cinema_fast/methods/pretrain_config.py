"""The options of pre-training besides those of every run: the one source of their defaults and checks."""

import dataclasses
import math
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from ..common.checks import check, flag
from ..common.views import CLIP
from ..data.loading.crops import CropOptions
from ..models.config import DINOConfig, preset
from ..train.options import RunOptions


def _changed(config: object, before: str = "") -> list[str]:
    """The fields of a config that differ from their defaults; those of nested ones under dotted names."""
    names = []
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            names += _changed(value, f"{before}{each.name}.")
        elif value != each.default:
            names.append(before + each.name)
    return names


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
        if self.guidance == "none" and (changed := _changed(self)):
            raise ValueError(f"--mask.{changed[0]} has no effect without --mask.guidance motion")


@dataclass(frozen=True)
class DistillConfig:
    """DINO self-distillation, of presets cmrfm-* (Caron et al., ICCV 2021; Jacob et al., JCMR 2025)."""

    # images of each study in a step: of different views, as far as it has them, and of a stack one slice
    images: int = 4
    # temperature of the teacher's softmax at the first step, and after its warm-up
    teacher_temp: tuple[float, float] = (0.04, 0.07)
    # share of the steps over which the temperature rises
    teacher_temp_warmup: float = 0.3
    # momentum of the teacher's average at the first step; it rises to 1 at the last, by half a cosine
    momentum: float = 0.996
    # weight decay at the last step; it rises to it from --weight-decay by half a cosine
    weight_decay_end: float = 0.4
    # share of the steps in which the prototypes are not updated
    freeze_last_layer: float = 0.01
    # subtract the moving average of the teacher's logits, or do not; then the outputs collapse
    centring: Literal["on", "off"] = "on"
    # steps between measurements of k-NN accuracy and feature rank on the held-out studies
    knn_every: int = 1000

    def validate(self) -> None:
        """Raise ValueError naming the option that is out of range; see `MaskConfig.validate`."""
        ours = partial(check, self, prefix="dino.")
        ours("images", "knn_every", valid=lambda x: x >= 1, must="must be at least 1")
        if self.teacher_temp[0] == self.teacher_temp[1] and "teacher_temp_warmup" in _changed(self):
            raise ValueError("--dino.teacher-temp-warmup has no effect where --dino.teacher-temp stays the same")
        if not all(0 < temp < math.inf for temp in self.teacher_temp):
            raise ValueError(f"--dino.teacher-temp takes START END, both above 0, got {self.teacher_temp}")
        ours("momentum", valid=lambda x: 0 <= x <= 1, must="must lie in 0..1")
        ours("teacher_temp_warmup", "freeze_last_layer", valid=lambda x: 0 <= x <= 1,
             must="is a share of the steps, between 0 and 1")  # fmt: skip
        ours("weight_decay_end", valid=lambda x: 0 <= x < math.inf, must="must be finite and not negative")

    def to_dict(self) -> dict:
        """Plain values for YAML and checkpoints."""
        return dataclasses.asdict(self) | {"teacher_temp": list(self.teacher_temp)}


OF_RECIPE = ("lr", "warmup", "weight_decay", "clip_grad")
DINO_RECIPE = dict(zip(OF_RECIPE, (5e-4, 0.1, 0.04, 3.0)))  # as published; that of CineMA is RunOptions'
OF_MAE, OF_DINO = ("mask_ratio", "decode_ratio", "mask", "motion", "augment"), ("dino", "crop")


@dataclass(frozen=True)
class PretrainConfig(RunOptions):
    """Pre-train on a cine store: CineMA (masked autoencoder) on single frames of all views, HeartMAE on clips, DINO
    (presets cmrfm-*) on all images of all views and sequences.

    The learning rate is not scaled with the batch size. The published ones are 1e-3 for 64 studies a step, of DINO 5e-4
    for 256 images a step (--batch-size x --accumulate x ranks x --dino.images).
    """

    FREE = RunOptions.FREE | {"init_from", "split"}  # of the split, the studies held out may not change
    LATER: ClassVar = {
        **RunOptions.LATER, "mask": dataclasses.asdict(MaskConfig()), "motion": "stored",
        "dino": DistillConfig().to_dict(), "crop": CropOptions().to_dict(),
    }  # fmt: skip

    _: KW_ONLY
    # peak learning rate, after warm-up; cosine decay follows. None: 1e-3, for DINO 5e-4
    lr: float | None = None
    # share of the steps used for linear warm-up of the learning rate. None: 10/800, for DINO 0.1
    warmup: float | None = None
    # weight decay of AdamW; none on 1-D parameters (biases, norms). None: 0.05, for DINO 0.04 at the first step
    weight_decay: float | None = None
    # gradient clipping: largest norm of the gradients of a step, for DINO of each parameter. None: 5, for DINO 3
    clip_grad: float | None = None
    # share of the tokens of each view that is masked
    mask_ratio: float = 0.75
    # share of the masked tokens that is decoded and predicted; 1: all, less is faster
    decode_ratio: float = 1.0
    # motion-guided masking
    mask: MaskConfig = field(default_factory=MaskConfig)
    # where the motion comes from: maps in the store (prepare --motion), or optical flow of the augmented clips of each
    # step
    motion: Literal["stored", "online"] = "stored"
    # self-distillation
    dino: DistillConfig = field(default_factory=DistillConfig)
    # its crops
    crop: CropOptions = field(default_factory=CropOptions)
    # share of the studies held out of training and evaluated at the end
    holdout: float = 0.0
    # CSV with the columns study and split, in place of --holdout: the studies of val and test are held out, such as
    # those of a public data set (STORE/split.csv)
    split: Path | None = None
    # initial weights: the folder of a run, or a .safetensors or torch file; views that it lacks start at random
    init_from: Path | None = None

    def __post_init__(self):
        kind = type(preset(self.preset))
        for name in OF_RECIPE:
            if getattr(self, name) is None:
                value = DINO_RECIPE[name] if kind is DINOConfig else getattr(RunOptions, name)
                object.__setattr__(self, name, value)
        super().__post_init__()
        check(self, "mask_ratio", valid=lambda x: 0 < x < 1, must="must lie between 0 and 1")
        check(self, "decode_ratio", valid=lambda x: 0 < x <= 1, must="must be above 0 and at most 1")
        check(self, "holdout", valid=lambda x: 0 <= x < 1, must="is a share of the studies, at least 0 and below 1")
        if self.split and self.holdout:
            raise ValueError(f"--holdout {self.holdout:g} has no effect beside --split, which names the studies to "
                             "hold out: give one of them")  # fmt: skip
        changed = _changed(self)
        for name in OF_MAE if kind is DINOConfig else OF_DINO:
            if of := [other for other in changed if other.split(".")[0] == name]:
                raise ValueError(f"{flag(of[0])} has no effect on --preset {self.preset}: leave it out")
        self.mask.validate()
        if self.motion == "online" and self.mask.guidance == "none":
            raise ValueError("--motion online has no effect without --mask.guidance motion")
        self.dino.validate()
        self.crop.validate()
        if "dino.knn_every" in changed and not (self.holdout or self.split):
            raise ValueError("--dino.knn-every has no effect without --holdout or --split: no study is held out")
        if kind is DINOConfig and self.parallel == "fsdp":
            raise ValueError(f"--parallel fsdp: {self.preset} is small, replicate it on each rank (--parallel ddp)")
        if self.motion == "online" and CLIP not in preset(self.preset).views:
            raise ValueError(
                f"--motion online: preset {self.preset!r} reads single frames, which do not move; use the maps of the "
                "store (--motion stored)"
            )

    def to_dict(self) -> dict:
        """Plain values for YAML and checkpoints."""
        return super().to_dict() | {"dino": self.dino.to_dict(), "crop": self.crop.to_dict()}
