"""The options of every training run, whatever its method: the one source of their defaults and checks."""

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

SETTLING_STEPS = 3  # first steps, with compilation and cold caches, which are not profiled


@dataclass(frozen=True)
class RunOptions:
    """Options of both `pretrain` and `finetune`.

    When a run is resumed, those in FREE may change: how it reads, reports and stops. Its steps may also be divided
    differently into micro-batches and over ranks.
    """

    FREE: ClassVar[frozenset[str]] = frozenset({
        "data", "out", "device", "precision", "mode", "recompute", "loader", "workers", "strict", "log_every", "sinks",
        "checkpoint_every", "keep_checkpoints", "max_skips", "profile",
    })  # fmt: skip
    # options that older runs did not have, with the values that describe what they did
    LATER: ClassVar[Mapping[str, Any]] = {"augment": AugmentConfig().to_dict(), "parallel": "ddp", "ranks": 1}

    # cine store made by `cinema-fast prepare`
    data: Path
    # run folder, for config.yaml, metrics.jsonl, run.log, checkpoints/ and reports
    out: Path
    # optimiser steps of the whole run
    steps: int
    _: KW_ONLY
    # name of the model configuration; `cinema-fast info` lists them
    preset: str = "cinema-base"
    # views to train on (for clips: to draw them from); if not given: all of the store
    views: tuple[str, ...] = ()
    # studies per micro-batch, on each rank under torchrun
    batch_size: int = 64
    # gradient accumulation: micro-batches per optimiser step
    accumulate: int = 1
    # random seed; the same seed gives the same run
    seed: int = 0
    # data augmentation
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # peak learning rate, after warm-up; cosine decay follows
    lr: float = 1e-3
    # learning rate at the last step, where the cosine decay ends
    min_lr: float = 1e-6
    # share of the steps used for linear warm-up of the learning rate
    warmup: float = 10 / 800
    # weight decay of AdamW; none on 1-D parameters (biases, norms)
    weight_decay: float = 0.05
    # gradient clipping: largest norm of the gradients of a step
    clip_grad: float = 5.0
    # initial weights: the folder of a run, or a .safetensors or torch file
    init_from: Path | None = None
    # resume from the newest intact checkpoint in --out
    resume: bool = False
    # device to run on; auto: the GPU if there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # precision of activations; auto: bf16 where it is faster, on GPUs, CPUs with AMX, and AMD's with AVX512-BF16
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # how a step runs: eager; compiled by torch.compile; or compiled and replayed as one CUDA graph
    mode: Literal["eager", "compile", "graph"] = "eager"
    # activation checkpointing, to save memory: none; the MLPs' hidden layers; or whole transformer blocks
    recompute: Literal["none", "selective", "full"] = "none"
    # under torchrun: replicate the model on each rank (ddp), or shard its parameters (fsdp, for large and huge models)
    parallel: Literal["ddp", "fsdp"] = "ddp"
    # data loader: DALI (processes) or torch (threads); auto: DALI where there is a GPU and the extra dali
    loader: Literal["auto", "dali", "torch"] = "auto"
    # threads (torch) or processes (DALI) that read the store, on each rank
    workers: int = 2
    # end the run at a study that cannot be read; by default another takes its place, and validation leaves it out
    strict: bool = False
    # steps between lines of metrics.jsonl
    log_every: int = 10
    # also log metrics to TensorBoard or Weights & Biases (extras of the same names)
    sinks: tuple[SinkName, ...] = ()
    # steps between checkpoints
    checkpoint_every: int = 1000
    # number of newest checkpoints to keep
    keep_checkpoints: int = 2
    # updates whose loss or gradient is not finite are skipped; stop the run after more than this many in a row
    max_skips: int = 10
    # number of steps to profile, after the first three, into profile/ of the run folder; 0: none
    profile: int = 0

    def __post_init__(self):
        check_at_least(
            self, 1, "steps", "batch_size", "accumulate", "workers", "log_every", "checkpoint_every", "keep_checkpoints"
        )
        check(self, "lr", "clip_grad", valid=lambda x: 0 < x < math.inf, must="must be above 0 and finite")
        check(self, "min_lr", "weight_decay", valid=lambda x: 0 <= x < math.inf, must="must be finite and not negative")
        check(self, "warmup", valid=lambda x: 0 <= x <= 1, must="is a share of the steps, between 0 and 1")
        check_at_least(self, 0, "max_skips", "profile")
        if self.profile and self.steps < self.profile + SETTLING_STEPS:
            raise ValueError(
                f"--profile {self.profile} needs --steps of at least {self.profile + SETTLING_STEPS} (the first "
                f"{SETTLING_STEPS} are not profiled), got {self.steps}"
            )
        check_seeds(self, "seed")
        self.augment.validate()
        preset(self.preset)  # an unknown name fails here, before anything is opened

    def to_dict(self) -> dict:
        """Plain values for YAML and checkpoints."""
        values = dataclasses.asdict(self)
        del values["resume"]  # it belongs to this process, not to the run
        values["augment"] = self.augment.to_dict()
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}

    def differences(self, before: Mapping[str, Any], ranks: int = 1) -> list[str]:
        """The options that would change the results, compared with the saved options `before`, one line each. ranks:
        number of ranks."""
        now = {name: v for name, v in (self.to_dict() | {"ranks": ranks}).items() if name not in self.FREE}
        then = dict(self.LATER) | {name: v for name, v in before.items() if name not in self.FREE}
        for values in (now, then):
            counts = [values.pop(name) for name in ("batch_size", "accumulate", "ranks")]
            values["batch_size x accumulate x ranks"] = math.prod(counts)
        now, then = _flat(now), _flat(then)
        return [f"{name}: was {then.get(name)}, now {now.get(name)}" for name in now if now[name] != then.get(name)]


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of nested configs under dotted names, as on the command line."""
    flat = {}
    for name, value in options.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat
