"""What the GPU at hand reaches at copies and at one large matrix product: the rates that predictions assume."""

import statistics
from collections.abc import Iterator

import conditions
import gpu_turn
import torch
from gpu_step import time_steps
from report_schema import MachineRow

ROUNDS = 10
WHAT = ("copy bandwidth", "bf16 matrix product", "SM clock under it", "power under it")
LOAD_SECONDS = 2.0  # for which products are queued while nvidia-smi looks


def names() -> list[str]:
    """The rows that `measure` gives."""
    return [f"machine {what}" for what in WHAT]


def measure(device: str, smoke: bool) -> Iterator[tuple[str, MachineRow]]:
    """Bytes read and written by a copy; a square product of random numbers (zeros would draw less power)."""
    n_bytes, side = (2**20, 256) if smoke else (2**32, 8192)
    yield _row(WHAT[0], 2 * n_bytes / _copy_seconds(n_bytes, device) / 1e12, "TB/s")
    seconds = _product_seconds(side, device)
    yield _row(WHAT[1], 2 * side**3 / seconds / 1e12, f"TFLOP/s at {side}^3")
    for what, value, unit in zip(WHAT[2:], _under_load(side, seconds, device), ("MHz", "W")):
        yield _row(what, value, unit)


def _under_load(side: int, seconds: float, device: str) -> tuple[float, float]:
    """The SM clock and the power while products run; on a CPU zeros."""
    if device == "cpu":
        return 0.0, 0.0
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    with gpu_turn.turn():
        for _ in range(int(LOAD_SECONDS / seconds)):
            a @ b
        said = conditions.output("nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits")
        torch.cuda.synchronize()
    clock, power = said.splitlines()[0].split(",")
    return float(clock), float(power)


def _copy_seconds(n_bytes: int, device: str) -> float:
    source, target = (torch.empty(n_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    return _median(lambda: target.copy_(source), device)


def _product_seconds(side: int, device: str) -> float:
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return _median(lambda: a @ b, device)


def _median(work, device: str) -> float:
    time_steps(work, 3, device)
    with gpu_turn.turn():
        return statistics.median(time_steps(work, 1, device) for _ in range(ROUNDS))


def _row(what: str, value: float, unit: str) -> tuple[str, MachineRow]:
    row = MachineRow(what, value, unit)
    return row.name, row
