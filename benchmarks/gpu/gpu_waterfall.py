"""What each technique adds: from the reference as published to our fastest step, one at a time.

Every rung starts from the same weights and makes the same steps on the same images under the same masks, so that its
loss says whether the technique changed what is learnt.
"""

import statistics
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import workload
from gpu_step import adamw, attempt, compiled, release, time_steps, train, train_as_published
from reference import Reference
from report_schema import WaterfallRow
from torch import Tensor

import cinema_fast as cf
from cinema_fast import kernels

LEARNING_RATE = 1e-4
SETS = 4  # of images, taken in turn
UNTIMED = 10  # first steps: compilation, caches


@dataclass(frozen=True)
class Rung:
    """A way of training, which has every technique of the rungs before it."""

    technique: str
    ours: bool = True
    checkpointing: bool = False
    backend: str | None = None
    compile: bool = False
    decode_ratio: float = 1.0


LADDER = (
    Rung("reference as published", ours=False, checkpointing=True),
    Rung("no checkpointing", ours=False),
    Rung("visible tokens only, in PyTorch", backend="torch"),
    Rung("kernels"),
    Rung("torch.compile", compile=True),
    Rung("a quarter of the masked tokens decoded", compile=True, decode_ratio=0.25),
)


@dataclass
class Waterfall:
    """`steps` training steps on every rung; without a reference on ours only."""

    preset: str
    batch: int
    device: str
    reference: Reference | None
    steps: int

    def __post_init__(self):
        self.config = workload.config_of(self.preset)
        self.ladder = [rung for rung in LADDER if rung.ours or self.reference]

    @property
    def names(self) -> list[str]:
        """The rows that `measure` yields."""
        return [f"waterfall {rung.technique}" for rung in self.ladder]

    def measure(self) -> Iterator[tuple[str, WaterfallRow | str]]:
        """Climb; where one rung fails the next is compared with the one before it."""
        torch.manual_seed(0)
        weights = {name: t.clone() for name, t in cf.CineMA(self.config).state_dict().items()}
        images = [workload.smooth_images(self.config, self.batch, self.device, seed) for seed in range(SETS)]
        before = None
        for name, rung in zip(self.names, self.ladder):
            outcome = attempt(lambda rung=rung: self._climb(rung, weights, images))
            release()
            if isinstance(outcome, WaterfallRow):
                outcome.times_faster = before and before / outcome.ms
                before = outcome.ms
            yield name, outcome

    def _climb(self, rung: Rung, weights: dict[str, Tensor], images: list[dict[str, Tensor]]) -> WaterfallRow:
        if rung.ours:
            model = cf.CineMA(self.config)
        else:
            model = self.reference.build(self.config, checkpointing=rung.checkpointing)
        model.load_state_dict(weights)
        model.to(self.device)
        called = compiled(model, self.device) if rung.compile else model
        optimizer = adamw(model, LEARNING_RATE)

        def make_step(count: int) -> Tensor:
            plan = workload.draw_plan(
                self.config, self.batch, decode_ratio=rung.decode_ratio, step=count, device=self.device
            )
            batch = images[count % SETS]
            if rung.ours:
                return train(model, optimizer, lambda: called(batch, plan).loss)
            with self.reference.masks(workload.masks_of(plan)):
                return train_as_published(model, optimizer, lambda: called(batch, workload.MASK_RATIO)[0])

        losses, seconds = [], []
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with kernels.use(rung.backend) if rung.backend else nullcontext():
            for count in range(self.steps):
                seconds.append(time_steps(lambda count=count: losses.append(make_step(count)), 1, self.device))
        last = torch.stack(losses[-max(self.steps // 10, 1) :])
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else None
        return WaterfallRow(
            technique=rung.technique, preset=self.preset, batch=self.batch, dtype="bf16", steps=self.steps,
            ms=statistics.median(seconds[min(UNTIMED, self.steps // 2) :]) * 1e3, peak_mib=peak,
            loss=float(last.mean()), times_faster=None,
        )  # fmt: skip
