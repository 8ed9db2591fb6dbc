"""`cinema-fast bench data STORE`: the time of every stage between the store and the model.

It times each stage alone, each loader alone, and a loader together with a step of a given length.
docs/how-to/bottlenecks.md says what to do about the slowest one. `bench_stages.py` does the timing.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .common.checks import check, check_at_least
from .common.naming import counted
from .data.loading.augmentation import AugmentConfig

WAITED = 0.02  # a step that waits for data for a smaller share of the time than this is not limited by data


@dataclass(frozen=True)
class BenchDataConfig:
    """Time every stage from a cine store to a training step, and name the bottleneck."""

    # what to time
    what: Literal["data"]
    # store made by `cinema-fast prepare`
    store: Annotated[Path, tyro.conf.arg(metavar="STORE")]
    # name of the model configuration, for its views and image sizes
    preset: str = "cinema-base"
    # views to read; if not given: all of the store
    views: tuple[str, ...] = ()
    # studies per batch
    batch_size: int = 64
    # threads (torch) or processes (DALI) that read the store
    workers: int = 2
    # batches to time each stage on
    batches: int = 16
    # duration of the dummy training step, in ms
    step_ms: float = 100.0
    # data loader to run beside the dummy step; each that is installed is also timed alone
    loader: Literal["auto", "dali", "torch"] = "auto"
    # device to copy batches to; auto: the GPU if there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # data augmentation
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # JSON file to write the figures to
    out: Path | None = None

    def __post_init__(self):
        check_at_least(self, 1, "batch_size", "workers", "batches")
        check(self, "step_ms", valid=lambda x: 0 <= x < math.inf, must="must be finite and not negative")
        self.augment.validate()


@dataclass(frozen=True)
class Stage:
    """The time of a batch in one stage. frames: in a batch. note: how it was timed."""

    name: str
    ms: float
    frames: int
    note: str = ""

    @property
    def frames_per_s(self) -> float:
        """Frames per second if this were the only stage."""
        return self.frames / self.ms * 1e3 if self.ms else float("inf")


@dataclass(frozen=True)
class DataReport:
    """stages: by name. wait: share of the time for which the dummy step waited. facts: conditions and byte counts."""

    stages: dict[str, Stage]
    wait: float
    limit: str
    facts: dict[str, object]

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        stages = [asdict(stage) | {"frames_per_s": stage.frames_per_s} for stage in self.stages.values()]
        return {"stages": stages, "wait": self.wait, "limit": self.limit, **self.facts}

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.facts.items()]
        lines += ["", f"{'stage':<28} {'ms a batch':>10} {'frames/s':>10}"]
        for stage in self.stages.values():
            rate = f"{stage.frames_per_s:.0f}" if stage.ms else ""
            lines.append(f"{stage.name:<28} {stage.ms:>10.2f} {rate:>10}  {stage.note}".rstrip())
        return "\n".join([*lines, "", f"limit: {self.limit}"])


def limit(stages: dict[str, Stage], loader: str, wait: float, workers: int, step_ms: float) -> str:
    """The stage that limits the throughput, in one sentence."""
    alone = stages[f"loader {loader}"].ms
    if wait < WAITED:
        work = {"the step": step_ms} | {name: stages[name].ms for name in ("augmentation",) if name in stages}
        slowest = max(work, key=work.get)
        return f"{slowest} ({work[slowest]:.1f} ms a batch); the loader alone takes {alone:.1f}"
    reading = {name: stages[name].ms / workers for name in ("read, warm", "pad and copy")}
    reading |= {"transfer": stages["transfer"].ms} if "transfer" in stages else {}
    slowest = max(reading, key=reading.get)
    return (
        f"data: the step waited {wait * 100:.0f} % of the time; the loader alone takes {alone:.1f} ms a batch, mostly "
        f"{slowest} ({reading[slowest]:.1f} ms with {counted(workers, 'worker')}); reading from a cold cache takes "
        f"{stages['read, cold'].ms / workers:.1f} ms"
    )
