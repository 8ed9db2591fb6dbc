"""The training step of a model on a device: ours in each of its modes, and the reference's in turn with ours.

A step is zero_grad, masks, forward, backward, gradient clipping and fused AdamW, on images that lie on the device. Each
way is built, held to the float32 loss, timed, and given back as a row before the next one is built.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import gpu_turn
import torch
import workload
from reference import Reference
from report_schema import Row, StepRow, step_name
from torch import Tensor, nn

import cinema_fast as cf
from cinema_fast import kernels
from cinema_fast.models.flops import mfu
from cinema_fast.models.precision import autocast
from cinema_fast.train.compile import compile_model
from cinema_fast.train.graph import CudaCapture, GraphedStep
from cinema_fast.train.optimizer import adamw as recipe_adamw
from cinema_fast.train.optimizer import groups_of, update

PUBLISHED = "reference as published"  # gradient checkpointing
COMPILED = "reference compiled, no checkpointing"
DECODE_RATIOS = (1.0, 0.25)
EAGER, COMPILING = ("eager", "eager graph"), ("compiled", "graph")
WARM_UP = 3
CLIP = 5.0
LONG_ENOUGH = 15.0  # seconds of rounds: no more are begun after two of them
OTHER_MASKS = 0.05  # the loss of the same weights and images under other masks differs by less


@dataclass
class Way:
    """One way of running the step, what memory it needs, and how long a step took in each round."""

    name: str
    mode: str
    decode_ratio: float
    step: Callable[[], Tensor]
    peak_mib: float | None = None
    seconds: list[float] = field(default_factory=list)


@dataclass
class Steps:
    """Ours at one batch size: rows of the modes asked for, at both decode ratios; and beside a peer.

    attention: the backend of sparse_attention, "auto" for its own choice. Each of `rounds` times `steps` steps in a
    row.
    """

    preset: str
    batch: int
    device: str
    rounds: int
    steps: int
    attention: str = "auto"
    reference: Reference | None = None

    def __post_init__(self):
        self.config = workload.config_of(self.preset)

    def names(self, modes: tuple[str, ...], peer: str | None = None) -> list[str]:
        """The rows that `measure` or `beside` gives."""
        return [self._name(mode, ratio, peer) for ratio in DECODE_RATIOS for mode in modes if self.runs(mode)]

    def runs(self, mode: str) -> bool:
        """Graphs are for GPUs."""
        return self.device == "cuda" or "graph" not in mode

    def _name(self, mode: str, ratio: float, peer: str | None = None) -> str:
        return step_name(self.preset, self.batch, "bf16", mode, ratio, peer, self.attention)

    def measure(
        self, modes: tuple[str, ...], then: Callable[[str, Callable[[], Tensor]], Iterator] = lambda *_: iter(())
    ) -> Iterator[tuple[str, Row | str]]:
        """(name, row or why there is none), each as soon as it is timed. Where one way fails the others go on.

        then: gives more rows of a mode and its step, every token decoded, after it is timed.
        """
        before = self._allocated()
        with self._attention():
            ready = attempt(self.ready)
            if isinstance(ready, str):
                yield from ((name, ready) for name in self.names(modes))
                return
            model, images, expected = ready
            optimizer = adamw(model)
            for ratio in DECODE_RATIOS:
                for mode in filter(self.runs, modes):
                    name, build = self._name(mode, ratio), partial(self.way(mode, model, optimizer, images), ratio)
                    way = attempt(partial(self._prepare, name, mode, ratio, before, build, expected))
                    yield name, way if isinstance(way, str) else attempt(partial(self._alone, way))
                    if ratio == 1.0 and not isinstance(way, str):
                        yield from then(mode, way.step)
                    del way  # a graph's memory
                    release()

    def beside(self, peer: str, modes: tuple[str, ...]) -> Iterator[tuple[str, StepRow | str]]:
        """Ours and a peer in turn, round after round, so that clocks that wander do so for all; the peer's row last."""
        shared = self._allocated()
        with self._attention():
            model, images, expected = self.ready()
            weights = {name: t.to("cpu", copy=True) for name, t in model.state_dict().items()}
            optimizer = adamw(model)
            ways = []
            wanted = [(self._name(mode, ratio, peer), mode, ratio) for ratio in DECODE_RATIOS for mode in modes]
            for name, mode, ratio in wanted:
                build = partial(self.way(mode, model, optimizer, images), ratio)
                outcome = attempt(partial(self._prepare, name, mode, ratio, shared, build, expected))
                if isinstance(outcome, str):
                    yield name, outcome
                else:
                    ways.append(outcome)
            name, before = self._name(peer, 1.0), self._allocated()
            build = partial(self._their_step, peer, weights, images, expected)
            theirs = attempt(partial(self._prepare, name, peer, 1.0, before, build, expected))
            if isinstance(theirs, str):
                yield name, theirs
                theirs = None
            self._time_in_turn(list(filter(None, [*ways, theirs])))
            for way in filter(None, [*ways, theirs]):
                yield way.name, self._row(way, None if way is theirs else peer, None if way is theirs else theirs)

    def _time_in_turn(self, ways: list[Way]) -> None:
        """Fill in each way's seconds a step, one entry a round."""
        begin = time.monotonic()
        for done in range(self.rounds):
            if done >= 2 and time.monotonic() - begin > LONG_ENOUGH:
                return
            with gpu_turn.turn():
                for way in ways:
                    way.seconds.append(time_steps(way.step, self.steps, self.device))

    def _attention(self):
        return nullcontext() if self.attention == "auto" else kernels.use(self.attention, "sparse_attention")

    def ready(self) -> tuple[nn.Module, dict[str, Tensor], float]:
        """Model, images, and the float32 loss once bf16 is near it and partial decoding predicts what all does."""
        torch.manual_seed(0)
        images = workload.random_images(self.config, self.batch, self.device)
        model = cf.CineMA(self.config).to(self.device)
        plan = self._plan(0, 1.0, self.batch)
        with torch.no_grad(), kernels.use("sdpa", "sparse_attention") if self.attention == "cudnn" else nullcontext():
            loss = model(images, plan).loss.item()  # float32, which cuDNN's attention lacks
            workload.gate_partial(model, images, plan, self._plan(0, 0.25, self.batch))
        with torch.no_grad(), autocast(self.device, torch.bfloat16):
            low = model(images, plan).loss.item()
        workload.gate("ours in bf16", low, loss, workload.LOSS_BUDGET[torch.bfloat16])
        return model, images, loss

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.device == "cuda" else 0

    def _plan(self, step: int | Tensor, ratio: float, batch: int) -> dict[str, cf.TokenPlan]:
        return workload.draw_plan(self.config, batch, decode_ratio=ratio, step=step, device=self.device)

    def way(self, mode: str, model: nn.Module, optimizer, images: dict[str, Tensor]) -> Callable:
        """A function that builds the step of a mode for a decode ratio."""
        called = compiled(model, self.device) if mode in COMPILING else model
        build = self._captured if "graph" in mode else self._launched
        return partial(build, called, optimizer, images)

    def _launched(self, model, optimizer, images, ratio) -> Callable[[], Tensor]:
        """Launched kernel by kernel; other masks in every step."""
        count = iter(range(1 << 30))

        def loss_of():
            return model(images, self._plan(next(count), ratio, self.batch)).loss

        return lambda: train(model, optimizer, loss_of)

    def _captured(self, model, optimizer, images, ratio) -> Callable[[], Tensor]:
        """Captured after as many steps as a run has before it, and replayed; other masks in every step."""
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

    def _their_step(self, peer, weights, images, expected) -> Callable[[], Tensor]:
        model = self.reference.build(self.config, checkpointing=peer == PUBLISHED).to(self.device)
        model.load_state_dict(weights)
        masks = workload.masks_of(self._plan(0, 1.0, self.batch))
        with torch.no_grad(), self.reference.masks(masks):
            loss = model(images, workload.MASK_RATIO)[0].item()
        workload.gate("ours against the reference", expected, loss, workload.LOSS_BUDGET[torch.float32])
        called = torch.compile(model, backend=backend_of(self.device), dynamic=False) if peer == COMPILED else model
        optimizer = adamw(model)
        return lambda: train_as_published(model, optimizer, lambda: called(images, workload.MASK_RATIO)[0])

    def _prepare(self, name: str, mode: str, ratio: float, before: int, build, expected: float) -> Way:
        """Build and warm up. The loss must be near the gate's; the last step's peak, above the bytes that were
        allocated `before` this way came, is its memory. A graph's is that of its capture: replays allocate nothing."""
        on_gpu = self.device == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        way = Way(name, mode, ratio, build())
        for _ in range(WARM_UP):
            loss = way.step().item()
        workload.gate(f"loss of {mode} under its own masks", loss, expected, OTHER_MASKS)
        if on_gpu:
            if "graph" not in mode:
                torch.cuda.reset_peak_memory_stats()
                way.step()
            way.peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
        return way

    def _alone(self, way: Way) -> StepRow:
        self._time_in_turn([way])
        return self._row(way, None, None)

    def _row(self, way: Way, peer: str | None, theirs: Way | None) -> StepRow:
        seconds = statistics.median(way.seconds)
        flops = self.batch * workload.plan_step_flops(self.config, self._plan(0, way.decode_ratio, 1))
        return StepRow(
            preset=self.preset,
            batch=self.batch,
            dtype="bf16",
            mode=way.mode,
            attention=self.attention,
            decode_ratio=way.decode_ratio,
            ms=seconds * 1e3,
            studies_per_s=self.batch / seconds,
            mfu=mfu(flops, seconds) if self.device == "cuda" else None,
            peak_mib=way.peak_mib,
            peer=peer,
            peer_ms=statistics.median(theirs.seconds) * 1e3 if theirs else None,
            speedup=statistics.median(t / o for t, o in zip(theirs.seconds, way.seconds)) if theirs else None,
        )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Tensor:
    """One step in bf16, clipped and updated as the training loop does it; the loss is not read back."""
    loss = workload.forward_backward(model, loss_of, torch.bfloat16)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    return update(optimizer, trained, loss, clip=CLIP)[0]


def train_as_published(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Tensor:
    """One step in bf16, clipped as the reference does it."""
    loss = workload.forward_backward(model, loss_of, torch.bfloat16)
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return loss


def compiled(model: nn.Module, device: str) -> nn.Module:
    """The model compiled as the training loop compiles it."""
    return compile_model(model, backend=backend_of(device))


def backend_of(device: str) -> str:
    """On the CPU, for tests of the report, torch.compile works without its last stage."""
    return "inductor" if device == "cuda" else "eager"


def adamw(model: nn.Module, lr: float = 0.0) -> torch.optim.AdamW:
    """The recipe's optimiser; at a learning rate of 0 it does the same work, and the weights stay those of the gate."""
    optimizer = recipe_adamw(groups_of(model, weight_decay=0.05), lr=lr)
    for group in optimizer.param_groups:
        group["capturable"] = next(model.parameters()).is_cuda  # by a CUDA graph
    return optimizer


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
