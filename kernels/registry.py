"""What an operation says of itself, in its own file: everything that lists operations reads it here.

`kernels.table()` and `cinema-fast info`, `kernels.use`, the README's table, the audit of machine code, the reports of a
GPU and the tests of all Triton kernels are built from OPERATIONS. An operation registers itself when its file is
imported, which `kernels/__init__.py` does.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .inputs import Inputs

Reasons = Mapping[str, Callable[[], list[str]]]
SHORT = {torch.bfloat16: "bf16", torch.float32: "fp32"}


class Code(NamedTuple):
    """What a kernel's machine code must hold: instructions of the matrix units where it computes in 16 bit; 16-byte
    loads and stores of global memory at every shape but "awkward" (or only where the constant of that name is True)."""

    matrix: bool
    wide_loads: bool
    wide_stores: bool | str
    why: str


class Call(NamedTuple):
    """A call of an operation's Triton form, forward and backward.

    name: shape, dtype and variant. run: makes its inputs, and returns what is computed and every gradient.
    """

    name: str
    run: Callable[[Inputs], list[Tensor]]


@dataclass(frozen=True)
class Operation:
    """An operation of `kernels/`.

    function: the public one, whose name is the operation's. computes: a line of the README. unsupported: for a tensor
    on the device in question {backend: why it cannot run there}, fastest first; "torch" always can. launches: names
    that `launches()` counts, forward's first, then backward's. calls: of its Triton form at the models' shapes. small:
    the same at a size for the interpreter, through all of its kernels, for activations of a dtype. code: what the
    audit wants of its kernels, by their names where they differ. remark: what `table()` adds for a device.
    """

    function: Callable
    computes: str
    unsupported: Callable[[Tensor], Reasons]
    launches: tuple[str, ...]
    calls: Callable[[], Iterable[Call]] = tuple
    small: Callable[[Inputs, torch.dtype], list[Tensor]] | None = None
    code: Code | Mapping[str, Code] = field(default_factory=dict)
    remark: Callable[[torch.device], str] = lambda device: ""

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def backends(self) -> tuple[str, ...]:
        """Every name that `backend=` takes beside "auto"."""
        return (*self.unsupported(torch.empty(1, 1, 8)), "torch")

    @property
    def passes(self) -> tuple[str, ...]:
        """ "fwd", and "bwd" where it is differentiated."""
        return ("fwd", "bwd") if len(self.launches) > 1 else ("fwd",)


OPERATIONS: dict[str, Operation] = {}


def register(operation: Operation) -> None:
    """Make an operation known."""
    OPERATIONS[operation.name] = operation


def in_both(shape: str) -> bool:
    """Whether a shape is audited in float32 as well as in bfloat16: those of cinema-base, which other sizes share."""
    return shape.startswith(("cinema-base", "cinema-decoder"))


def dtypes_of(shape: str) -> tuple[torch.dtype, ...]:
    """In which an operation on activations is audited."""
    return (torch.bfloat16, torch.float32) if in_both(shape) else (torch.bfloat16,)


def call_name(shape: str, dtype: torch.dtype, variant: str = "") -> str:
    """Of a Call."""
    return f"{shape} {SHORT[dtype]} {variant}".strip()
