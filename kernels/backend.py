"""The choice of the backend that runs an operation, and counts of kernel launches.

`auto` takes the fastest backend that supports the device, dtype and shape at hand. A backend that was requested by name
and cannot run raises an error with the reasons. Triton is optional: without it the kernel files can still be imported.
"""

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch

from .registry import OPERATIONS

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
NVTX = torch.version.cuda is not None and not INTERPRET

if HAS_TRITON:
    import triton
    import triton.language as tl
else:  # the decorators and annotations of kernel definitions must still evaluate
    triton = SimpleNamespace(jit=lambda fn=None, **_: fn if fn else (lambda f: f), constexpr_function=lambda fn: fn)
    tl = SimpleNamespace(constexpr=lambda value: value)

__all__ = ["HAS_TRITON", "INTERPRET", "BackendError", "choose", "launches", "tl", "triton", "use"]

_forced: dict[str | None, str] = {}  # backend by operation; key None: all other operations
_launches: Counter[str] = Counter()


class BackendError(ValueError):
    """A backend was requested by name and cannot run; the message says why."""


@contextmanager
def use(name: str, *operations: str) -> Iterator[None]:
    """Inside this block, operations called with backend="auto" run on the backend `name`.

    operations: names such as "sparse_attention", for these alone; without any, for all operations. With nested blocks,
    one that names an operation takes precedence for it over one that names none. A named operation that lacks the
    backend raises BackendError; without names, operations that lack it make their own choice. A backend that cannot run
    here raises BackendError. Not meant to be entered inside compiled code.
    """
    global _forced
    backends = dict.fromkeys(backend for operation in OPERATIONS.values() for backend in operation.backends)
    if name not in backends:
        raise BackendError(f"unknown backend {name!r}; expected one of {', '.join(backends)}")
    if unknown := set(operations) - set(OPERATIONS):
        raise BackendError(f"unknown operation {min(unknown)!r}; expected one or more of {', '.join(OPERATIONS)}")
    before, _forced = _forced, _forced | dict.fromkeys(operations or (None,), name)
    try:
        yield
    finally:
        _forced = before


def launches() -> dict[str, int]:
    """Kernel launches since the process started, by operation; the PyTorch forms are not counted."""
    return dict(_launches)


@contextmanager
def launching(operation: str, on: torch.Tensor) -> Iterator[None]:
    """Context for a kernel launch: on the device of `on`, counted, in an NVTX range with the operation's name."""
    _launches[operation] += 1
    with torch.cuda.device_of(on), torch.cuda.nvtx.range(f"cinema_fast.{operation}") if NVTX else nullcontext():
        yield


def triton_unsupported(*tensors: torch.Tensor | None) -> list[str]:
    """Why Triton kernels cannot run on these tensors; empty where they can."""
    if not HAS_TRITON:
        return ["triton is not installed (it comes with torch's CUDA builds; pip install triton on Linux)"]
    given = [t for t in tensors if t is not None]
    if INTERPRET or all(t.is_cuda for t in given):
        return []
    return [f"needs CUDA tensors, got {given[0].device.type} (or TRITON_INTERPRET=1 in the environment)"]


def choose(
    operation: str, backend: str, reasons: Mapping[str, Callable[[], list[str]]], *, called: str | None = None
) -> str:
    """Name of the backend to run.

    Args:
        operation: as registered.
        backend: "auto" or a name.
        reasons: for each backend of the operation other than "torch", fastest first, a function that lists why it
            cannot run (empty: it can).
        called: the function's name for messages, where it is not the operation's.

    Raises:
        BackendError: a backend named by the caller or by `use` cannot run, or does not exist.
    """
    forced = _forced.get(operation, _forced.get(None))
    if backend == "auto" and (forced == "torch" or forced in reasons or operation in _forced):
        backend = forced
    if backend == "auto":
        # interpreted kernels are for tests: they run only where they are requested by name
        runnable = (name for name, why in reasons.items() if not (INTERPRET and name == "triton") and not why())
        return next(runnable, "torch")
    if backend == "torch":
        return backend
    name = called or operation
    if backend not in reasons:
        raise BackendError(f"{name}: no backend {backend!r}; it has auto, {', '.join([*reasons, 'torch'])}")
    if why := reasons[backend]():
        raise BackendError(f"{name}: backend {backend!r} cannot run: {'; '.join(why)}")
    return backend
