"""One pass of one operation, in each way of computing it: first held to its oracle, then timed beside the limit.

On a GPU a call is timed by CUDA events, with a cold L2 cache and behind a pause in which the host queues all of it:
what the GPU does is timed, not launches. On a CPU it is the wall clock. Either ends in pytest-benchmark's own columns,
or, ours in turn with all peers, in a row of `gpu_report.py`.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import gpu_turn
import torch
import torch._functorch.config
from report_schema import KernelRow, kernel_sha
from tolerances import BUDGETS
from torch import Tensor
from workload import GateError

torch._functorch.config.donated_buffer = False  # backward is timed many times on the graph of one forward
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
OURS = "triton" if DEVICE == "cuda" else "torch"
SMOKE_SHAPE = "awkward"
WARM_UP = 3
PAUSE_SECONDS, LONGEST_PAUSE = 1e-3, 20e-3
CYCLES_PER_S = 2e9  # more than any of these GPUs' clocks make, so that a pause is at least as long as asked for
LEFT_OUT: set[str] = set()  # ways that no row is to time
ROW_SECONDS = 20  # after which a row gets no more rounds: some peers take seconds a call


class Peaks(NamedTuple):
    """A GPU's limits: bytes/s of its memory, FLOP/s of the matrix units in 16 bit without sparsity and of ordinary
    float32, exponentials/s of the special function units."""

    memory: float
    matrix: float
    ordinary: float
    exponential: float


# From the data sheets. A multiprocessor's special function units give 16 exponentials a cycle beside 2048 (A100), 4096
# (H100, H200) or 8192 (B200) FLOPs of its matrix units.
PEAKS = {
    "B200": Peaks(8.0e12, 2250e12, 75e12, 2250e12 / 512),
    "H200": Peaks(4.8e12, 989e12, 67e12, 989e12 / 256),
    "H100": Peaks(3.35e12, 989e12, 67e12, 989e12 / 256),
    "A100": Peaks(2.04e12, 312e12, 19.5e12, 312e12 / 128),
}


@dataclass
class Operation:
    """An operation at one shape and dtype.

    name: as in kernels/<name>.py. ways: functions of `leaves`, ours first. leaves: what gets a gradient, of which there
    may be nothing. oracle: the same function in float64. n_bytes, flops, exponentials: by pass. check: replaces the
    comparison with the oracle, gives the error of a way. items: how many of what a call works on, for a rate.
    """

    name: str
    shape: str
    dtype: torch.dtype
    ways: dict[str, Callable[..., Tensor]]
    leaves: tuple[Tensor, ...]
    oracle: Callable[..., Tensor] | None
    n_bytes: dict[str, int]
    flops: dict[str, int] = field(default_factory=dict)
    exponentials: dict[str, int] = field(default_factory=dict)
    check: Callable[[str], float] | None = None
    items: tuple[int, str] | None = None
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    expected: tuple[Tensor, ...] = ()  # the oracle's result and gradients, once they are computed

    def call(self, pass_: str, way: str) -> Callable[[], object]:
        """What is timed."""
        if way == "clone":  # as many bytes read and written, with nothing to compute: the practical ceiling
            half = torch.empty(max(self.n_bytes[pass_] // 2, 1), dtype=torch.uint8, device=DEVICE)
            return half.clone
        function = self.ways[way]
        if pass_ == "fwd":
            return lambda: function(*self.leaves)
        out = function(*self.leaves)
        upstream = _upstream(out)
        return lambda: torch.autograd.grad(out, self.leaves, upstream, retain_graph=True)

    def gate(self, pass_: str, way: str) -> float:
        """Relative RMS error against the oracle; GateError where it is beyond the budget of the tests."""
        if way == "clone":
            return 0.0
        error, budget = self.error(way)[pass_], BUDGETS[self.dtype].rms
        if not error <= budget:
            raise GateError(f"{self.name} {pass_} {self.shape}, {way}: error {error:.2g}, budget {budget:.2g}")
        return error

    def error(self, way: str) -> dict[str, float]:
        """Relative RMS errors against the oracle, by pass."""
        if way not in self.errors:
            self.errors[way] = {"fwd": self.check(way)} if self.check else self._compare(way)
        return self.errors[way]

    def limit(self, pass_: str) -> tuple[float, str]:
        """Seconds that the data sheet allows, and by what it is bound: memory, compute or the exponential."""
        peak = peaks()
        arithmetic = peak.ordinary if self.dtype == torch.float32 else peak.matrix
        spent = {
            "memory": self.n_bytes[pass_] / peak.memory,
            "compute": self.flops.get(pass_, 0) / arithmetic,
            "exponential": self.exponentials.get(pass_, 0) / peak.exponential,
        }
        bound = max(spent, key=spent.get)
        return spent[bound], bound

    def _compare(self, way: str) -> dict[str, float]:
        out = self.ways[way](*self.leaves)
        upstream = _upstream(out)
        found = out, *torch.autograd.grad(out, self.leaves, upstream)
        if not self.expected:  # it is slow, and the same for every way
            exact = [x.detach().double().requires_grad_() for x in self.leaves]
            expected = self.oracle(*exact)
            self.expected = expected.detach(), *torch.autograd.grad(expected, exact, upstream.double())
        forward, *backward = (_error(a, b) for a, b in zip(found, self.expected))
        return {"fwd": forward, "bwd": max(backward)}


def _upstream(out: Tensor) -> Tensor:
    generator = torch.Generator(out.device).manual_seed(7)
    return torch.randn(out.shape, generator=generator, device=out.device, dtype=torch.float32).to(out.dtype)


def _error(actual: Tensor, expected: Tensor) -> float:
    expected = expected.detach()
    return float((actual.detach().double() - expected).norm() / expected.norm())


@cache
def peaks() -> Peaks:
    """Those of this GPU; of an H100 where it is not in the table or there is none."""
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else ""
    return next((values for key, values in PEAKS.items() if key in name), PEAKS["H100"])


class Clock:
    """A timer for pytest-benchmark that moves on by what `time` measures, and stands still meanwhile."""

    def __init__(self):
        self.now = 0.0
        self.pause = PAUSE_SECONDS
        self.cold = torch.empty(256 * 2**20, dtype=torch.uint8, device=DEVICE) if DEVICE == "cuda" else None

    def __call__(self) -> float:
        return self.now

    def time(self, function: Callable[[], object]) -> float:
        """Seconds of one call. On a GPU it is queued behind a pause, which is longer the next time where it was over
        before the host had queued all: a host that is slower would be timed with the GPU."""
        if self.cold is None:
            start = time.perf_counter()
            function()
            seconds = time.perf_counter() - start
        else:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.cold.zero_()
            torch.cuda._sleep(int(self.pause * CYCLES_PER_S))
            start.record()
            function()
            if start.query():
                self.pause = min(2 * self.pause, LONGEST_PAUSE)
            end.record()
            end.synchronize()
            seconds = start.elapsed_time(end) / 1e3
        self.now += seconds
        return seconds


def ways(*peers: str) -> list[str]:
    """Names of the ways of an operation, as tests are parametrised by them."""
    compiled = ["compiled peer"] if DEVICE == "cuda" else []
    return list(dict.fromkeys([OURS, "torch", *peers, *compiled, "clone"]))


def parametrize(metafunc, shapes: Iterable[str], passes: Iterable[str], ways: Iterable[str]) -> None:
    """A test's shape, pass_ and way, for `pytest_generate_tests`; at toy size with --smoke."""
    smoke = metafunc.config.getoption("--smoke")
    metafunc.parametrize("shape", [SMOKE_SHAPE] if smoke else list(shapes))
    metafunc.parametrize("pass_", list(passes))
    metafunc.parametrize("way", list(ways))


def run(benchmark, summary: list[str], operation: Operation, pass_: str, way: str, smoke: bool) -> None:
    """Gate, then time one way into pytest-benchmark's columns; what else there is to say goes to extra_info."""
    error = operation.gate(pass_, way)
    call, clock = operation.call(pass_, way), Clock()
    benchmark.group = f"{operation.name}-{pass_}-{operation.shape}-{str(operation.dtype).removeprefix('torch.')}"
    benchmark._timer = clock
    before = _peak_reset()
    rounds = 1 if smoke else 50 if DEVICE == "cuda" else 5
    benchmark.pedantic(lambda: clock.time(call), rounds=rounds, warmup_rounds=1 if smoke else WARM_UP)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    limit, bound = operation.limit(pass_)
    n_bytes, flops = operation.n_bytes[pass_], operation.flops.get(pass_, 0)
    benchmark.extra_info |= {
        "us": seconds * 1e6, "GB/s": n_bytes / seconds / 1e9, "TFLOP/s": flops / seconds / 1e12,
        "FLOP/byte": flops / n_bytes, "bound": bound, "rel. RMS error": error,
    }  # fmt: skip
    if operation.items:
        number, what = operation.items
        benchmark.extra_info[f"{what}/s"] = number / seconds
    if DEVICE == "cuda":
        copy = operation.call(pass_, "clone")
        copied = statistics.median(clock.time(copy) for _ in range(20))
        benchmark.extra_info |= {
            "% of limit": 100 * limit / seconds, "% of clone": 100 * copied / seconds,
            "peak MiB": (torch.cuda.max_memory_allocated() - before) / 2**20,
        }  # fmt: skip
    facts = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in benchmark.extra_info.items())
    summary.append(f"{benchmark.group} {way}: {facts}")


def _peak_reset() -> int:
    if DEVICE != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def kernel_rows(
    build: Callable[[str], Operation], name: str, shapes: Iterable[str], passes: Iterable[str], smoke: bool
) -> dict[str, Callable[[], KernelRow]]:
    """The rows of `gpu_report.py` for one operation: {name: what measures it}."""
    shapes = [SMOKE_SHAPE] if smoke else shapes
    return {
        f"kernel {name} {pass_} {shape}": lambda shape=shape, pass_=pass_: kernel_row(build(shape), pass_, smoke)
        for shape in shapes
        for pass_ in passes
    }


def kernel_row(operation: Operation, pass_: str, smoke: bool) -> KernelRow:
    """All ways in turn, round after round; the fastest peer is the one to compare with."""
    ours, *peers = (way for way in operation.ways if way not in LEFT_OUT)
    error, calls = operation.gate(pass_, ours), {ours: operation.call(pass_, ours)}
    for peer in peers:
        try:
            operation.gate(pass_, peer)
            calls[peer] = operation.call(pass_, peer)
        except (RuntimeError, ValueError, NotImplementedError) as problem:  # out of memory, or wrong: no peer to beat
            print(f"{operation.name} {pass_} {operation.shape}: without {peer}: {problem}", file=sys.stderr)
    clock, seconds = Clock(), {way: [] for way in calls}
    begin = time.monotonic()
    with gpu_turn.turn():
        for i in range(WARM_UP + (1 if smoke else 50)):
            for way, call in calls.items():
                spent = clock.time(call)
                if i >= WARM_UP:
                    seconds[way].append(spent)
            if i >= WARM_UP and time.monotonic() - begin > ROW_SECONDS:
                break
    ours, *peers = seconds
    peer = min(peers, key=lambda way: statistics.median(seconds[way]), default=None)
    median = statistics.median(seconds[ours])
    limit, _ = operation.limit(pass_)
    number, what = operation.items or (None, None)
    return KernelRow(
        op=operation.name, pass_=pass_, shape=operation.shape, dtype=str(operation.dtype).removeprefix("torch."),
        us=median * 1e6, limit_us=limit * 1e6, percent_of_limit=100 * limit / median,
        peer=peer, peer_us=peer and statistics.median(seconds[peer]) * 1e6,
        speedup=peer and statistics.median(p / o for p, o in zip(seconds[peer], seconds[ours])),
        rel_err=error, err_budget=BUDGETS[operation.dtype].rms, kernel_sha=kernel_sha(operation.name),
        per_s=number and number / median, unit=what,
    )  # fmt: skip
