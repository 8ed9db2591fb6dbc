"""The options that every training run has, whatever its method: the one source of their defaults and checks."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..common.checks import check, check_at_least, check_seeds
from ..data.loading.augmentation import AugmentConfig
from ..models.config import preset
from .sinks import SinkName

SETTLING_STEPS = 3  # compilation and caches: never profiled


@dataclass(frozen=True)
class RunOptions:
    """Options of `pretrain` and `finetune` alike.

    Where a run is resumed, those in FREE may change: how it reads, reports and stops. A step may be cut into
    micro-batches, and spread over ranks, otherwise.
    """

    FREE: ClassVar[frozenset[str]] = frozenset({
        "data", "out", "device", "precision", "mode", "recompute", "loader", "workers", "strict", "log_every", "sinks",
        "checkpoint_every", "keep", "max_skips", "profile",
    })  # fmt: skip
    # options that older runs did not have, and what they did
    LATER: ClassVar[Mapping[str, Any]] = {"augment": AugmentConfig().to_dict(), "parallel": "ddp", "ranks": 1}

    # store made by `cinema-fast prepare`
    data: Path
    # run folder: config.yaml, metrics.jsonl, checkpoints/ and what the command adds
    out: Path
    # optimiser steps of the whole run
    steps: int
    _: KW_ONLY
    # model size; `cinema-fast info` lists them
    preset: str = "cinema-base"
    # views to train on, or to draw clips from; all that can be used when none is named
    views: tuple[str, ...] = ()
    # studies a step takes at once; under torchrun, each rank
    batch_size: int = 64
    # batches whose gradients are averaged into one step
    accumulate: int = 1
    # random seed: the same seed gives the same run
    seed: int = 0
    # how the images are changed at random
    augment: AugmentConfig = field(default_factory=AugmentConfig)
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
    # weights to start from: the folder of a run, or a .safetensors or torch file
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
    # what reads the store: DALI's processes, or threads; auto takes DALI where there is a GPU and the extra dali
    loader: Literal["auto", "dali", "torch"] = "auto"
    # threads or processes that read the store
    workers: int = 2
    # end the run at a study that cannot be read, instead of taking another in its place or judging without it
    strict: bool = False
    # steps between lines of metrics.jsonl; the loss is read back only then, and after the first step
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
        check_at_least(self, 1, "steps", "batch_size", "accumulate", "workers", "log_every", "checkpoint_every", "keep")
        check(self, "lr", "clip", valid=lambda x: 0 < x < math.inf, must="must be above 0 and finite")
        check(self, "min_lr", "weight_decay", valid=lambda x: 0 <= x < math.inf, must="must be finite and not negative")
        check(self, "warmup", valid=lambda x: 0 <= x <= 1, must="is a share of the steps, between 0 and 1")
        check_at_least(self, 0, "max_skips", "profile")
        if self.profile and self.steps < self.profile + SETTLING_STEPS:
            raise ValueError(
                f"--profile {self.profile} wants --steps of at least {self.profile + SETTLING_STEPS} (the first "
                f"{SETTLING_STEPS} are not profiled), got {self.steps}"
            )
        check_seeds(self, "seed")
        self.augment.validate()
        preset(self.preset)  # an unknown name fails here, before anything is opened

    def to_dict(self) -> dict:
        """Plain values for YAML and checkpoints."""
        values = dataclasses.asdict(self)
        del values["resume"]  # how this process was called, not what the run is
        values["augment"] = self.augment.to_dict()
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}

    def differences(self, before: Mapping[str, Any], ranks: int = 1) -> list[str]:
        """What a run of so many ranks would compute otherwise than with the saved options `before`, one line each."""
        now = {name: v for name, v in (self.to_dict() | {"ranks": ranks}).items() if name not in self.FREE}
        then = dict(self.LATER) | {name: v for name, v in before.items() if name not in self.FREE}
        for values in (now, then):
            counts = [values.pop(name) for name in ("batch_size", "accumulate", "ranks")]
            values["batch_size x accumulate x ranks"] = math.prod(counts)
        return [f"{name}: was {then.get(name)}, now {now.get(name)}" for name in now if now[name] != then.get(name)]
