"""What a pre-training run is made of: the one source of its options, defaults and checks."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data.loading.augmentation import AugmentConfig
from ..models.config import CLIP, preset
from ..train.sinks import SinkName

SETTLING_STEPS = 3  # compilation and caches: never profiled


@dataclass(frozen=True)
class MaskConfig:
    """Whether and how motion guides the masks (Kim et al., "HeartMAE", ML4H 2024)."""

    # what decides which tokens are hidden: chance alone, or chance weighted by motion
    guidance: Literal["none", "motion"] = "none"
    # hide what moves, or keep it visible
    mode: Literal["mask", "keep"] = "mask"
    # share of motion in the weights: 0 is chance alone, 1 motion alone
    strength: float = 1.0
    # weights are raised to 1 / temperature: below 1 sharper, above 1 flatter
    temperature: float = 0.5
    # share of the steps in which the strength rises from 0
    warmup: float = 0.0

    def validate(self) -> None:
        """Raise ValueError naming the option that is out of range, or has no effect.

        Called by the config that holds it: the command line answers that one's errors in one line.
        """
        if not 0 <= self.strength <= 1:
            raise ValueError(f"--mask.strength must lie in 0..1, got {self.strength}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"--mask.temperature must be above 0, got {self.temperature}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"--mask.warmup is a share of the steps, between 0 and 1, got {self.warmup}")
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        if self.guidance == "none" and changed:
            raise ValueError(f"--mask.{changed[0]} has no effect without --mask.guidance motion")


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-train a masked autoencoder on a cine store: CineMA on single frames of all views, HeartMAE on clips.

    The learning rate is taken as it is, for whatever batch; 1e-3 is the published one for 64 studies a step.
    """

    # store made by `cinema-fast prepare`
    data: Path
    # run folder: config.yaml, metrics.jsonl, checkpoints/, report/
    out: Path
    # optimiser steps of the whole run
    steps: int
    # model size; `cinema-fast info` lists them
    preset: str = "cinema-base"
    # views to train on, or to draw clips from; all that the store has when none is named
    views: tuple[str, ...] = ()
    # studies a step takes at once; under torchrun, each rank
    batch_size: int = 64
    # batches whose gradients are averaged into one step
    accumulate: int = 1
    # key of everything random
    seed: int = 0
    # share of the tokens of a view that is hidden
    mask_ratio: float = 0.75
    # share of the hidden tokens that is predicted; 1 is exact, less is faster
    decode_ratio: float = 1.0
    # how the images are changed at random
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # whether and how motion guides the masks
    mask: MaskConfig = field(default_factory=MaskConfig)
    # where a guiding motion is from: maps in the store (prepare --motion), or the clips of a step themselves, as they
    # are after augmentation
    motion: Literal["stored", "online"] = "stored"
    # highest learning rate
    lr: float = 1e-3
    # learning rate at the last step
    min_lr: float = 1e-6
    # share of the steps in which the learning rate rises
    warmup: float = 10 / 800
    # decoupled weight decay; none on 1-D parameters
    weight_decay: float = 0.05
    # largest gradient norm
    clip: float = 5.0
    # share of the studies kept away from training and evaluated at the end
    holdout: float = 0.0
    # weights to start from, the folder of a run or a .safetensors or torch file; of views it lacks they start fresh
    init_from: Path | None = None
    # go on from the newest sound checkpoint in `out`
    resume: bool = False
    # where to run; auto takes the GPU if there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # arithmetic of activations; auto takes bf16 where the machine computes in it
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # how a step runs: as it is written; compiled; or compiled and replayed as one CUDA graph
    mode: Literal["eager", "compile", "graph"] = "eager"
    # what backward computes again to save memory: nothing; the MLPs' hidden layers; or whole transformer blocks
    recompute: Literal["none", "selective", "full"] = "none"
    # under torchrun: every rank has the whole model (ddp), or a part of each parameter (fsdp), for large and huge ones
    parallel: Literal["ddp", "fsdp"] = "ddp"
    # who reads the store: DALI's processes, or threads; auto takes DALI where there is a GPU and the extra dali
    loader: Literal["auto", "dali", "torch"] = "auto"
    # threads or processes that read the store
    workers: int = 2
    # end the run at a study that cannot be read, instead of taking another in its place or judging without it
    strict: bool = False
    # steps between lines of metrics.jsonl; the loss is read back only then
    log_every: int = 10
    # where the lines of metrics.jsonl also go, by the extras of these names
    sinks: tuple[SinkName, ...] = ()
    # steps between checkpoints
    checkpoint_every: int = 1000
    # checkpoints to keep
    keep: int = 2
    # updates in a row that may be skipped for a loss or gradient that is not finite
    max_skips: int = 10
    # steps to profile, after the first three, into profile/ of the run folder
    profile: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "workers", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{_flag(name)} must be at least 1, got {getattr(self, name)}")
        check_optimiser(self)
        for name in ("max_skips", "profile"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{_flag(name)} must not be negative, got {getattr(self, name)}")
        if self.profile and self.steps < self.profile + SETTLING_STEPS:
            raise ValueError(
                f"--profile {self.profile} wants --steps of at least {self.profile + SETTLING_STEPS} (the first "
                f"{SETTLING_STEPS} are not profiled), got {self.steps}"
            )
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"--mask-ratio must lie between 0 and 1, got {self.mask_ratio}")
        if not 0 < self.decode_ratio <= 1:
            raise ValueError(f"--decode-ratio must be above 0 and at most 1, got {self.decode_ratio}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"--holdout is a share of the studies, at least 0 and below 1, got {self.holdout}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"--seed must lie in 0..2**64 - 1, got {self.seed}")
        self.augment.validate()
        self.mask.validate()
        shape = preset(self.preset)  # an unknown name fails here, before anything is opened
        if self.motion == "online" and self.mask.guidance == "none":
            raise ValueError("--motion online has no effect without --mask.guidance motion")
        if self.motion == "online" and CLIP not in shape.views:
            raise ValueError(
                f"--motion online: preset {self.preset!r} reads single frames, which do not move; use the maps of the "
                "store (--motion stored)"
            )

    def to_dict(self) -> dict:
        """Plain values for YAML and checkpoints."""
        values = dataclasses.asdict(self)
        del values["resume"]  # how this process was called, not what the run is
        values["views"], values["augment"], values["sinks"] = list(self.views), self.augment.to_dict(), list(self.sinks)
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}

    def differences(self, before: dict, ranks: int = 1) -> list[str]:
        """What a run of so many ranks would compute otherwise than with the saved options `before`, one line each.

        Where a run goes on, how it reads, reports and stops may change; a step may be cut into micro-batches, and
        spread over ranks, otherwise.
        """
        return option_differences(self.to_dict() | {"ranks": ranks}, before, free=_FREE, later=_LATER)


def check_optimiser(config) -> None:
    """Raise ValueError naming the option of the updates, of `pretrain` or `finetune`, that is out of range or no finite
    number."""
    for name in ("lr", "clip"):
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"--{_flag(name)} must be above 0 and finite, got {getattr(config, name)}")
    for name in ("min_lr", "weight_decay"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"--{_flag(name)} must be finite and not negative, got {getattr(config, name)}")
    if not 0 <= config.warmup <= 1:
        raise ValueError(f"--warmup is a share of the steps, between 0 and 1, got {config.warmup}")


def option_differences(now: dict, before: dict, *, free: set[str], later: dict) -> list[str]:
    """Options of a run that are others than the saved ones `before`, one line each.

    free: options that may change. later: options that older runs did not have, with what they did. A step may be cut
    into micro-batches, and spread over ranks, otherwise.
    """
    now = {name: v for name, v in now.items() if name not in free}
    then = later | {name: v for name, v in before.items() if name not in free}
    for values in (now, then):
        counts = [values.pop(name) for name in ("batch_size", "accumulate", "ranks")]
        values["batch_size x accumulate x ranks"] = math.prod(counts)
    return [f"{name}: was {then.get(name)}, now {now.get(name)}" for name in now if now[name] != then.get(name)]


_FREE = {
    "data", "out", "init_from", "device", "precision", "mode", "recompute", "loader", "workers", "strict", "log_every",
    "sinks", "checkpoint_every", "keep", "max_skips", "profile",
}  # fmt: skip


# options that older runs did not have, and what they did
_LATER = {
    "augment": AugmentConfig().to_dict(), "mask": dataclasses.asdict(MaskConfig()), "motion": "stored",
    "parallel": "ddp", "ranks": 1,
}  # fmt: skip


def _flag(name: str) -> str:
    return name.replace("_", "-")
