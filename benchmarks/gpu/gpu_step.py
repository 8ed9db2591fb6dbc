"""The training step of a model on a device, ours against the reference: one group of rows of `gpu_report.py`.

A step is zero_grad, masks, forward, backward, gradient clipping and fused AdamW, on images that lie on the device. All
ways are warmed up, then timed in turn, so that clocks that wander do so for all.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
import workload
from reference import Reference
from report_schema import StepRow, step_name
from torch import Tensor, nn

import cinema_fast as cf
from cinema_fast.models.flops import mfu
from cinema_fast.train.graph import CudaCapture, GraphedStep

PUBLISHED = "reference as published"  # gradient checkpointing
COMPILED = "reference compiled, no checkpointing"
DECODE_RATIOS = (1.0, 0.25)
WARM_UP = 3
CLIP = 5.0
OTHER_MASKS = 0.05  # the loss of the same weights and images under other masks differs by less


@dataclass
class Way:
    """One way of running the step, what memory it needs, and how long a step took in each round."""

    mode: str
    decode_ratio: float
    step: Callable[[], Tensor]
    peak_mib: float | None = None
    seconds: list[float] = field(default_factory=list)


@dataclass
class StepGroup:
    """Ours, every token decoded and a quarter of them, in turn with one peer (or alone, where it is None).

    Ours runs in eager and, beside other peers than the reference as published, compiled and on a GPU as a graph. Each
    of `rounds` times `steps` steps in a row of every way.
    """

    preset: str
    batch: int
    device: str
    reference: Reference | None
    peer: str | None
    rounds: int
    steps: int

    def __post_init__(self):
        self.config = workload.config_of(self.preset)

    @property
    def names(self) -> list[str]:
        """The rows that `measure` yields."""
        theirs = [self._name(self.peer, 1.0)] if self.peer else []
        return [self._name(mode, ratio) for mode in self._modes() for ratio in DECODE_RATIOS] + theirs

    def _modes(self) -> tuple[str, ...]:
        if self.peer == PUBLISHED:
            return ("eager",)
        return ("eager", "compiled", "graph") if self.device == "cuda" else ("eager", "compiled")

    def _name(self, mode: str, ratio: float) -> str:
        return step_name(self.preset, self.batch, "bf16", mode, ratio, None if mode == self.peer else self.peer)

    def measure(self, seconds_left: Callable[[], float]) -> Iterator[tuple[str, StepRow | str]]:
        """Gate, warm up, time; yields (name, row or why there is none). Where one way fails the others go on."""
        torch.manual_seed(0)
        images = workload.random_images(self.config, self.batch, self.device)
        shared = self._allocated()
        ours = cf.CineMA(self.config).to(self.device)
        weights = {name: t.to("cpu", copy=True) for name, t in ours.state_dict().items()}
        expected = self._gate(ours, images)
        optimizer = adamw(ours)
        ways, failed = [], {}

        def enter(mode, ratio, before, build):
            outcome = attempt(lambda: self._prepare(mode, ratio, before, build, expected))
            if isinstance(outcome, Way):
                ways.append(outcome)
            else:
                failed[self._name(mode, ratio)] = outcome

        for mode in self._modes():
            called = ours if mode == "eager" else compiled(ours, self.device)
            build = self._graph_step if mode == "graph" else self._our_step
            for ratio in DECODE_RATIOS:
                enter(mode, ratio, shared, partial(build, called, optimizer, images, ratio))
        if self.peer:
            enter(self.peer, 1.0, self._allocated(), lambda: self._their_step(weights, images, expected))
        self._time_in_turn(ways, failed, seconds_left)
        yield from failed.items()
        theirs = next((w for w in ways if w.mode == self.peer), None)
        for way in ways:
            yield self._name(way.mode, way.decode_ratio), self._row(way, None if way is theirs else theirs)

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.device == "cuda" else 0

    def _gate(self, ours: nn.Module, images: dict[str, Tensor]) -> float:
        """The float32 loss of ours, once bf16 is near it and the predictions of partial decoding equal it."""
        plan = self._plan(0, 1.0, self.batch)
        with torch.no_grad():
            loss = ours(images, plan).loss.item()
            with workload.autocast(self.device, torch.bfloat16):
                low = ours(images, plan).loss.item()
        workload.gate("ours in bf16", low, loss, workload.LOSS_BUDGET[torch.bfloat16])
        workload.gate_partial(ours, images, plan, self._plan(0, 0.25, self.batch))
        return loss

    def _plan(self, step: int | Tensor, ratio: float, batch: int) -> dict[str, cf.TokenPlan]:
        return workload.draw_plan(self.config, batch, decode_ratio=ratio, step=step, device=self.device)

    def _our_step(self, model, optimizer, images, ratio) -> Callable[[], Tensor]:
        count = iter(range(1 << 30))

        def loss_of():
            return model(images, self._plan(next(count), ratio, self.batch)).loss

        return lambda: train(model, optimizer, loss_of)

    def _graph_step(self, model, optimizer, images, ratio) -> Callable[[], Tensor]:
        """Compiled, captured after as many steps as a run has before it, and replayed; other masks in every step."""
        count = torch.zeros(1, dtype=torch.int64, device=self.device)

        def work(_) -> Tensor:
            return train(model, optimizer, lambda: model(images, self._plan(count, ratio, self.batch)).loss)

        graphed = GraphedStep(work, CudaCapture(torch.device(self.device)))

        def step() -> Tensor:
            count.add_(1)
            return graphed(())

        for _ in range(WARM_UP + 1):
            step()
        return step

    def _their_step(self, weights, images, expected) -> Callable[[], Tensor]:
        model = self.reference.build(self.config, checkpointing=self.peer == PUBLISHED).to(self.device)
        model.load_state_dict(weights)
        masks = workload.masks_of(self._plan(0, 1.0, self.batch))
        with torch.no_grad(), self.reference.masks(masks):
            loss = model(images, workload.MASK_RATIO)[0].item()
        workload.gate("ours against the reference", expected, loss, workload.LOSS_BUDGET[torch.float32])
        called = compiled(model, self.device) if self.peer == COMPILED else model
        optimizer = adamw(model)
        return lambda: train(model, optimizer, lambda: called(images, workload.MASK_RATIO)[0])

    def _prepare(self, mode: str, ratio: float, before: int, build, expected: float) -> Way:
        """Build and warm up. The loss must be near the gate's; the last step's peak, above the bytes that were
        allocated `before` this way came, is its memory."""
        way = Way(mode, ratio, build())
        for _ in range(WARM_UP):
            loss = way.step().item()
        workload.gate(f"loss of {mode} under its own masks", loss, expected, OTHER_MASKS)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            way.step()
            way.peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
        return way

    def _time_in_turn(self, ways: list[Way], failed: dict[str, str], seconds_left) -> None:
        """Fill in each way's seconds a step, one entry a round; at least three rounds, then until the time is up."""
        for done in range(self.rounds):
            if done >= 3 and seconds_left() <= 0:
                return
            for way in list(ways):
                outcome = attempt(lambda way=way: time_steps(way.step, self.steps, self.device))
                if isinstance(outcome, str):
                    failed[self._name(way.mode, way.decode_ratio)] = outcome
                    ways.remove(way)
                else:
                    way.seconds.append(outcome)

    def _row(self, way: Way, peer: Way | None) -> StepRow:
        seconds = statistics.median(way.seconds)
        flops = self.batch * workload.plan_step_flops(self.config, self._plan(0, way.decode_ratio, 1))
        return StepRow(
            preset=self.preset,
            batch=self.batch,
            dtype="bf16",
            mode=way.mode,
            decode_ratio=way.decode_ratio,
            ms=seconds * 1e3,
            studies_per_s=self.batch / seconds,
            mfu=mfu(flops, seconds) if self.device == "cuda" else None,
            peak_mib=way.peak_mib,
            peer=self.peer if way.mode != self.peer else None,
            peer_ms=statistics.median(peer.seconds) * 1e3 if peer else None,
            speedup=statistics.median(t / o for t, o in zip(peer.seconds, way.seconds)) if peer else None,
        )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Tensor:
    """One step in bf16; the loss is not read back."""
    loss = workload.forward_backward(model, loss_of, torch.bfloat16)
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return loss


def compiled(model: nn.Module, device: str) -> nn.Module:
    """The model under torch.compile; on the CPU, for tests of the report, without the compiler's last stage."""
    return torch.compile(model, backend="inductor" if device == "cuda" else "eager", dynamic=False)


def adamw(model: nn.Module, lr: float = 0.0) -> torch.optim.AdamW:
    """The recipe's optimiser; at a learning rate of 0 it does the same work, and the weights stay those of the gate."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    capturable = trained[0].is_cuda  # by a CUDA graph
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True, capturable=capturable)


def time_steps(step: Callable[[], Tensor], n: int, device: str) -> float:
    """Seconds a step, of n in a row, by the device's own clock."""
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(n):
            step()
        return (time.perf_counter() - start) / n
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(n):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / n


def attempt(work: Callable[[], object]) -> object:
    """What `work` gives, or a string: why it does not. Out of memory is such a reason, and what it held is released."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        reason = f"out of memory: {str(error).splitlines()[0]}"
    except Exception as error:  # a peer may fail to compile in many ways
        reason = f"{type(error).__name__}: {error}"[:500]
    release()
    return reason


def release() -> None:
    """Give memory that nothing holds any more back for what comes next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
