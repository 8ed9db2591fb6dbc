"""From what is launched to time: the assumptions, each with its range and source, and how they add up.

A kernel takes a fixed time and the larger of bytes over the copy rate and FLOPs over the rate of matrix products. A
step takes the sum over its kernels, or what the host needs to launch them where that is more. Ranges: each assumption
alone is put at its best and at its worst; the differences add up as independent errors do, by their squares.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from attention_time import MULTIPROCESSORS

PUBLISHED_TUTORIAL = 400e12  # FLOP/s; see `Assumptions.calibration`
PUBLISHED_CLOCK = 1.70e9


class Range(NamedTuple):
    """best, expected, worst: in the unit said; source: where they come from."""

    best: float
    expected: float
    worst: float
    unit: str
    source: str


@dataclass(frozen=True)
class Assumptions:
    """What the model takes from elsewhere, for one GPU."""

    copy_rate: Range
    matrix_rate: Range
    clock: Range
    calibration: Range
    ordinary_share: Range
    kernel: Range
    graph_kernel: Range
    launch: Range
    compiled_launch: Range
    unknown: Range


@dataclass(frozen=True)
class Rates:
    """One value for each of the assumptions: bytes/s, FLOP/s, Hz, factors, seconds."""

    copy_rate: float
    matrix_rate: float
    clock: float
    calibration: float
    ordinary_share: float
    kernel: float
    graph_kernel: float
    launch: float
    compiled_launch: float
    unknown: float


def assumptions(memory: float, tutorial_cycles: float) -> Assumptions:
    """Of a GPU of sm_90 whose data sheet says `memory` bytes/s.

    tutorial_cycles: of the tutorial's kernel for 1000 logits of head dim 64, by its machine code.
    """
    published = 4 * 64 * 1000 * MULTIPROCESSORS * PUBLISHED_CLOCK / PUBLISHED_TUTORIAL
    factor = published / tutorial_cycles
    rate, review = memory / 1e12, "review of the GPU code: 4.0 of an H200's 4.8 TB/s, the same share of another's"
    return Assumptions(
        copy_rate=Range(0.90 * rate, rate * 4.0 / 4.8, 0.75 * rate, "TB/s", review),
        matrix_rate=Range(680, 630, 580, "TFLOP/s", "the same review: GEMMs at 580-680; 8192^3 alone reaches 770-798"),
        clock=Range(1.83, 1.70, 1.50, "GHz", "1.83 is what 989 TFLOP/s mean; under load the power limit lowers it"),
        calibration=Range(
            0.85 * factor, factor, 1.3 * factor, "",
            "FlashAttention-3 (Shah et al., 2024), figure of head dim 64 without a mask: Triton 396-403 TFLOP/s on an "
            "H100 SXM at 2k to 16k keys, over the cycles of a tutorial's kernel compiled here, at 1.70 GHz; one point",
        ),
        ordinary_share=Range(0.5, 0.3, 0.2, "", "share of 67 TFLOP/s that the depthwise kernels reach: a guess"),
        kernel=Range(1.5, 2.5, 3.5, "us", "beginning and end of a kernel in a full stream: a guess"),
        graph_kernel=Range(1.0, 1.5, 2.5, "us", "the same in a CUDA graph: a guess"),
        launch=Range(4, 6, 9, "us", "host time a launch in eager, autograd and views included; alone it is 2-5"),
        compiled_launch=Range(2.5, 4, 6, "us", "host time a launch from Inductor's wrapper"),
        unknown=Range(0.92, 1.0, 1.10, "", "L2 hits, split-K and layouts of GEMMs, clocks that wander: on the whole"),
    )  # fmt: skip


SCALES = {"TB/s": 1e12, "TFLOP/s": 1e12, "GHz": 1e9, "us": 1e-6, "": 1.0}


def rates(given: Assumptions) -> Rates:
    """At what is expected."""
    return Rates(**{f.name: _value(getattr(given, f.name), "expected") for f in fields(given)})


def _value(given: Range, which: str) -> float:
    return getattr(given, which) * SCALES[given.unit]


def spread(seconds: Callable[[Rates], float], given: Assumptions) -> tuple[float, float, float]:
    """What is expected of `seconds`, and its low and high end."""
    point = rates(given)
    middle = seconds(point)
    gains = {which: 0.0 for which in ("best", "worst")}
    for field in fields(given):
        for which in gains:
            moved = seconds(replace(point, **{field.name: _value(getattr(given, field.name), which)}))
            gains[which] += (moved - middle) ** 2
    return middle, middle - math.sqrt(gains["best"]), middle + math.sqrt(gains["worst"])


class Work(NamedTuple):
    """A kernel, or some alike: bytes moved; FLOPs of the matrix units; of the ordinary ones; cycles of all
    multiprocessors together, before calibration; launches."""

    n_bytes: float = 0
    flops: float = 0
    ordinary_flops: float = 0
    cycles: float = 0
    launches: int = 1


def device_seconds(work: Work, at: Rates, graph: bool = False) -> float:
    """What a kernel keeps the device busy."""
    ordinary = 67e12 * at.ordinary_share
    computed = max(
        work.flops / at.matrix_rate,
        work.ordinary_flops / ordinary,
        work.cycles * at.calibration / MULTIPROCESSORS / at.clock,
    )
    return work.launches * (at.graph_kernel if graph else at.kernel) + max(work.n_bytes / at.copy_rate, computed)


def device_total(works: Counter[Work], at: Rates, graph: bool) -> float:
    """Seconds that the device is busy with all of them."""
    return sum(n * device_seconds(work, at, graph) for work, n in works.items()) * at.unknown


def host_seconds(works: Counter[Work], at: Rates, mode: str) -> float:
    """What the host needs to launch all of them; mode: as in the report's rows."""
    each = {"eager": at.launch, "compiled": at.compiled_launch}.get(mode, 0.0)  # a graph is launched as one
    return each * sum(n * work.launches for work, n in works.items())


def step_seconds(works: Counter[Work], at: Rates, mode: str) -> float:
    """Of a whole step: the device's time, or the host's where it has more to do."""
    return max(device_total(works, at, "graph" in mode), host_seconds(works, at, mode))
