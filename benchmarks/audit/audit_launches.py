"""Which kernels the operations launch in the calls that they declare, and with what; no GPU needed.

The public operations run, forward and backward, on CPU tensors of the real shapes, whose memory is never touched. Only
the two ends are replaced: Triton's driver names an architecture without a device, and its hook before compilation takes
the specialisation (types, divisibility, constants, warps and stages) and says that nothing is left to compile, so that
nothing is launched. What goes between is the launchers' and Triton's own code.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import NamedTuple
from unittest import mock

import triton
from audit_results import key_of
from checkout import PACKAGES
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITCallable, JITFunction

from cinema_fast.kernels import OPERATIONS
from cinema_fast.kernels.backend import INTERPRET
from cinema_fast.kernels.inputs import Inputs


class Case(NamedTuple):
    """A call of an operation, forward and backward, whose launches are audited; name: shape, dtype and variant."""

    operation: str
    name: str
    call: Callable[[], object]


@dataclass
class Launch:
    """One specialisation of a kernel for one architecture (80: sm_80), and the cases that launch it."""

    kernel: JITFunction
    arch: int
    signature: dict[str, str]
    constants: dict
    attributes: dict
    options: dict
    cases: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """As `kernel_name`."""
        return kernel_name(self.kernel)

    @property
    def specialisation(self) -> dict:
        """What is passed, readable: types with ":16" where divisible by 16, constants, warps and stages."""
        names = list(self.signature)
        divisible = {path for path, hints in self.attributes.items() if ["tt.divisibility", 16] in map(list, hints)}
        types = (
            f"{n} {_types(t, (i,), divisible)}" for i, (n, t) in enumerate(self.signature.items()) if t != "constexpr"
        )
        return {
            "types": ", ".join(types),
            "constants": ", ".join(f"{_argument(names, path)}={value}" for path, value in self.constants.items()),
            "warps": self.options["num_warps"],
            "stages": self.options["num_stages"],
        }

    @property
    def entry(self) -> dict:
        """Its entry in the results, without the code; digest: of the specialisation and all options."""
        options = {k: v for k, v in self.options.items() if k not in ("extern_libs", "arch")}
        passed = json.dumps([self.specialisation, options], sort_keys=True)
        return {
            "kernel": self.name, "source": source_hash(self.kernel), "arch": self.arch,
            "compiler": f"triton {triton.__version__}", "cases": sorted(self.cases), "passed": self.specialisation,
            "digest": hashlib.sha256(passed.encode()).hexdigest()[:16],
        }  # fmt: skip

    @property
    def key(self) -> str:
        """What the machine code depends on."""
        return key_of(self.entry)


def _argument(names: list[str], path: tuple[int, ...]) -> str:
    return names[path[0]] + "".join(f"[{i}]" for i in path[1:])


def _types(kind, path: tuple[int, ...], divisible: set) -> str:
    if isinstance(kind, tuple):
        return "(" + ", ".join(_types(k, (*path, i), divisible) for i, k in enumerate(kind)) + ")"
    return "1" if kind == "constexpr" else kind + ":16" * (path in divisible)


def kernel_name(kernel: JITFunction) -> str:
    """<operation's file or folder in kernels/>.<kernel>"""
    file = kernel.__module__.removeprefix("cinema_fast.kernels.").partition(".")[0]
    return f"{file}.{kernel.__name__}"


def source_hash(kernel: JITCallable) -> str:
    """Of its source and of all Triton functions and constants that it uses, wherever in their files they stand."""
    digest, seen, todo = hashlib.sha256(), set(), [kernel]
    while todo:
        function = todo.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        digest.update(function.src.encode())
        for name, value in _used(function):
            if isinstance(value, JITCallable):
                todo.append(value)
            elif isinstance(value, bool | int | float | str | triton.language.constexpr):
                digest.update(f"{name}={value}".encode())
    return digest.hexdigest()[:16]


def _used(function: JITCallable) -> list[tuple[str, object]]:
    """The module's names that a Triton function's code uses, in alphabetical order."""
    scope = function.__globals__
    return [(name, scope[name]) for name in sorted(set(function.fn.__code__.co_names)) if name in scope]


def kernels_of(modules: list[ModuleType]) -> dict[str, JITFunction]:
    """The Triton functions defined there that no other calls: those that launchers launch."""
    functions = {
        id(f): f for m in modules for f in vars(m).values() if isinstance(f, JITFunction) and f.__module__ == m.__name__
    }
    called = {id(value) for f in functions.values() for _, value in _used(f) if value is not f}
    return {kernel_name(f): f for key, f in functions.items() if key not in called}


def kernel_modules() -> list[ModuleType]:
    """All modules of kernels/; compiled libraries may lie beside them."""
    folder = PACKAGES["cinema_fast.kernels"]
    files = [file.relative_to(folder) for file in sorted(folder.rglob("*.py")) if file.stem != "__init__"]
    return [import_module(".".join(("cinema_fast.kernels", *file.with_suffix("").parts))) for file in files]


class NoDevice:
    """Triton's driver for a GPU that is not there; the device's number is its architecture's."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def record(cases: list[Case], arch: int) -> dict[str, Launch]:
    """What `cases` launch on an architecture, by key. RuntimeError where one launches nothing."""
    found: dict[str, Launch] = {}
    for case in cases:
        seen = launches_of(case.call, arch)
        if not seen:
            raise RuntimeError(f"{case.operation} {case.name}: launched no Triton kernel")
        for launch in seen:
            found.setdefault(launch.key, launch).cases.add(case.name)
    return found


def launches_of(call: Callable[[], object], arch: int) -> list[Launch]:
    """Every launch of a call on an architecture, in their order."""
    if INTERPRET:
        raise RuntimeError("the audit compiles: unset TRITON_INTERPRET")
    seen = []

    def take(*, fn, compile, **_):
        options = json.loads(compile["specialization_data"])["options"].items()
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in options}  # as they were before JSON
        (attributes,) = compile["configs"]
        seen.append(Launch(fn.jit_function, arch, compile["signature"], compile["constants"], attributes, options))
        return True  # as if another had compiled it: nothing is launched

    with _instead_of_a_gpu(arch, take):
        call()
    return seen


@contextmanager
def _instead_of_a_gpu(arch: int, hook: Callable[..., bool]) -> Iterator[None]:
    before = triton.runtime.driver._active
    with ExitStack() as stack:
        for module in kernel_modules():
            if hasattr(module, "triton_unsupported"):
                stack.enter_context(mock.patch.object(module, "triton_unsupported", lambda *tensors: []))
        stack.enter_context(mock.patch.object(triton.knobs.runtime, "jit_cache_hook", hook))
        triton.runtime.driver.set_active(NoDevice(arch))
        try:
            yield
        finally:
            triton.runtime.driver.set_active(before)


def cases() -> list[Case]:
    """Every call that an operation declares."""
    return [
        Case(name, call.name, partial(call.run, Inputs()))
        for name, operation in OPERATIONS.items() for call in operation.calls()
    ]  # fmt: skip
