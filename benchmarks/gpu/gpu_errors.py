"""Every operation on the device against its float64 oracle, forward and backward, before anything is timed.

The shapes are each benchmark's CHECKED. An operation runs in a process of its own: one that computes wrongly, hangs or
brings the device down costs no other.
"""

import importlib
import time
from collections.abc import Iterator

import timing
from gpu_step import attempt
from report_schema import ErrorRow, error_name


def shapes_of(op: str, smoke: bool) -> tuple[str, ...]:
    """Those that `measure` checks."""
    return (timing.SMOKE_SHAPE,) if smoke else importlib.import_module(f"bench_{op}").CHECKED


def names(op: str, smoke: bool) -> list[str]:
    """The rows that `measure` gives of an operation, as far as they are known: passes differ between operations."""
    passes = importlib.import_module(f"bench_{op}").PASSES
    return [error_name(op, pass_, shape) for shape in shapes_of(op, smoke) for pass_ in passes]


def measure(op: str, smoke: bool) -> Iterator[tuple[str, ErrorRow | str]]:
    """The error of ours at each shape and pass, or why there is none."""
    bench = importlib.import_module(f"bench_{op}")
    for shape in shapes_of(op, smoke):
        start = time.monotonic()

        def compare(shape=shape):
            operation = bench.build(shape)
            return operation, operation.error(next(iter(operation.ways)))

        outcome = attempt(compare)
        seconds = time.monotonic() - start
        if isinstance(outcome, str):
            for pass_ in bench.PASSES:
                yield error_name(op, pass_, shape), outcome
            continue
        operation, errors = outcome
        budget = timing.BUDGETS[operation.dtype].rms
        for pass_, error in errors.items():
            dtype, right = str(operation.dtype).removeprefix("torch."), error <= budget
            error = min(error, 1e9) if error == error else 1e9  # a NaN or an infinity, which JSON lacks
            row = ErrorRow(op, pass_, shape, dtype, next(iter(operation.ways)), error, budget, right, seconds)
            yield row.name, row
