"""The registry of operations. Each operation describes itself in its own file, by a call of `register`.

`kernels.table()` and `cinema-fast info`, `kernels.use`, the README's table, the audit of machine code, the GPU reports
and the tests of all Triton kernels are built from OPERATIONS. An operation registers itself when its file is imported,
which `kernels/__init__.py` does.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .inputs import Inputs

SHORT = {torch.bfloat16: "bf16", torch.float32: "fp32"}


class Code(NamedTuple):
    """What a kernel's machine code must contain. matrix: instructions of the matrix units where it computes in 16 bits.
    wide_loads, wide_stores: 16-byte accesses of global memory at every shape but "awkward"; a string names the
    constant that must be True for that."""

    matrix: bool
    wide_loads: bool
    wide_stores: bool | str
    why: str


class Call(NamedTuple):
    """A call of an operation's Triton form, forward and backward.

    name: shape, dtype and variant. run: makes the inputs, and returns the result and all gradients.
    """

    name: str
    run: Callable[[Inputs], list[Tensor]]


@dataclass(frozen=True)
class Operation:
    """An operation of `kernels/`.

    function: the public function; its name is the operation's. computes: the description in the README's table.
    unsupported: for each backend but "torch", fastest first, a function that lists why it cannot run on an ordinary
    tensor (empty: it can). launches, backward: names that `launches()` counts, of forward and backward. small: calls
    all of its kernels at a size for the interpreter, with activations of a dtype. calls: calls of its Triton form at
    the models' shapes. code: what the audit requires of its kernels, by kernel where they differ. remark: what
    `table()` adds for a device.
    """

    function: Callable
    computes: str
    unsupported: Mapping[str, Callable[[Tensor], list[str]]]
    launches: tuple[str, ...]
    small: Callable[[Inputs, torch.dtype], list[Tensor]]
    backward: tuple[str, ...] = ()
    calls: Callable[[], Iterable[Call]] = tuple
    code: Code | Mapping[str, Code] = field(default_factory=dict)
    remark: Callable[[torch.device], str] = lambda device: ""

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def backends(self) -> tuple[str, ...]:
        """All names that `backend=` accepts besides "auto"."""
        return (*self.unsupported, "torch")

    @property
    def passes(self) -> tuple[str, ...]:
        """ "fwd", and "bwd" where there is a backward."""
        return ("fwd", "bwd") if self.backward else ("fwd",)


OPERATIONS: dict[str, Operation] = {}


def register(operation: Operation) -> None:
    """Make an operation known."""
    OPERATIONS[operation.name] = operation


def call_name(shape: str, dtype: torch.dtype, variant: str = "") -> str:
    """The name of a Call."""
    return f"{shape} {SHORT[dtype]} {variant}".strip()
