"""Which kernels the operations launch at the registry's shapes, with what the launchers themselves pass; no GPU needed.

The public operations run, forward and backward, on CPU tensors of the real shapes, whose memory is never touched. Only
the two ends are replaced: Triton's driver names an architecture without a device, and its hook before compilation takes
the specialisation (types, divisibility, constants, warps and stages) and says that nothing is left to compile, so that
nothing is launched. What goes between is the launchers' and Triton's own code.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import product
from types import ModuleType
from typing import NamedTuple
from unittest import mock

import torch
import triton
import workload
from checkout import PACKAGES
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITCallable, JITFunction

from cinema_fast.kernels import TokenPlan
from cinema_fast.kernels.assemble_queries import assemble_queries
from cinema_fast.kernels.augment_images import augment_images, move_maps
from cinema_fast.kernels.backend import INTERPRET
from cinema_fast.kernels.masked_mse import masked_mse
from cinema_fast.kernels.patch_embed import patch_embed
from cinema_fast.kernels.sample_mask import sample_mask
from cinema_fast.kernels.shapes import ATTENTION, VIEWS, AttentionShape, ViewShape
from cinema_fast.kernels.sparse_attention import sparse_attention
from cinema_fast.kernels.sparse_depthwise_conv import sparse_depthwise_conv
from cinema_fast.models.stem import block_positions


class Case(NamedTuple):
    """A call of an operation, forward and backward, whose launches are audited; name: shape, dtype and variant."""

    operation: str
    name: str
    call: Callable[[], None]


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
        """<operation's file>.<kernel>"""
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
    def key(self) -> str:
        """What the machine code depends on: kernel and source, specialisation and options, architecture, Triton."""
        options = {k: v for k, v in self.options.items() if k not in ("extern_libs", "arch")}
        passed = json.dumps([self.specialisation, options], sort_keys=True)
        short = hashlib.sha256(passed.encode()).hexdigest()[:16]
        return f"{self.name} {source_hash(self.kernel)} {short} sm_{self.arch} triton {triton.__version__}"


def _argument(names: list[str], path: tuple[int, ...]) -> str:
    return names[path[0]] + "".join(f"[{i}]" for i in path[1:])


def _types(kind, path: tuple[int, ...], divisible: set) -> str:
    if isinstance(kind, tuple):
        return "(" + ", ".join(_types(k, (*path, i), divisible) for i, k in enumerate(kind)) + ")"
    return "1" if kind == "constexpr" else kind + ":16" * (path in divisible)


def kernel_name(kernel: JITFunction) -> str:
    """<operation's file>.<kernel>"""
    return f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}"


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
    if INTERPRET:
        raise RuntimeError("the audit compiles: unset TRITON_INTERPRET")
    found: dict[str, Launch] = {}
    for case in cases:
        seen = []

        def take(*, fn, compile, seen=seen, **_):
            options = json.loads(compile["specialization_data"])["options"].items()
            options = {k: tuple(v) if isinstance(v, list) else v for k, v in options}  # as they were before JSON
            (attributes,) = compile["configs"]
            seen.append(Launch(fn.jit_function, arch, compile["signature"], compile["constants"], attributes, options))
            return True  # as if another had compiled it: nothing is launched

        with _instead_of_a_gpu(arch, take):
            case.call()
        if not seen:
            raise RuntimeError(f"{case.operation} {case.name}: launched no Triton kernel")
        for launch in seen:
            found.setdefault(launch.key, launch).cases.add(case.name)
    return found


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


# Operations as the models and the benchmarks call them. bf16: uint8 images with their intensities, float32 parameters
# under autocast; fp32: float32 images as they are.

BASE_VIEWS = tuple(name for name in VIEWS if name.startswith("cinema-base"))
BASE_ATTENTION = tuple(name for name in ATTENTION if name.startswith(("cinema-base", "cinema-decoder")))
SHORT = {torch.bfloat16: "bf16", torch.float32: "fp32"}
DECODER_BLOCKS = 8  # whose keys and values are one projection
MOVES = ("zoom", "angle", "shift", "flip")
AUGMENTED = {  # what is drawn: nothing, as by default, as with all options
    "as stored": (), "zoomed": ("zoom",), "augmented": (*MOVES, "gamma", "noise", "noise_key"),
}  # fmt: skip


def cases() -> list[Case]:
    """Every operation at every shape, at those of cinema-base in both precisions."""
    mixed, single = torch.bfloat16, torch.float32
    found = []
    for name, view in VIEWS.items():
        base = name in BASE_VIEWS
        for dtype in (mixed, single) if base else (mixed,):
            found.append(_case("patch_embed", name, dtype, "", _patch_embed, view))
            found.append(_case("masked_mse", name, dtype, "", _masked_mse, view, False))
            found.append(_case("masked_mse", name, dtype, "norm", _masked_mse, view, True))
        for dtype in (single, mixed) if base else (single,):  # the residual stream is float32 under autocast too
            found.append(_case("assemble_queries", name, dtype, "", _assemble_queries, view))
        for weighted, part in product((False, True), repeat=2):
            variant = ("weighted" if weighted else "uniform") + ", a quarter decoded" * part
            found.append(Case("sample_mask", f"{name} {variant}", partial(_sample_mask, view, weighted, part)))
        for variant, parameters in AUGMENTED.items():
            found.append(Case("augment_images", f"{name} {variant}", partial(_augment, view, parameters)))
        for block, channels in _stages(view):
            for dtype in (mixed, single) if base else (mixed,):
                variant = "x".join(map(str, block))
                found.append(
                    _case("sparse_depthwise_conv", name, dtype, variant, _depthwise_conv, view, block, channels)
                )
    for name, shape in ATTENTION.items():
        for dtype in (mixed, single) if name in BASE_ATTENTION else (mixed,):
            found.append(_case("sparse_attention", name, dtype, "", _sparse_attention, shape))
    return found


def _stages(view: ViewShape) -> list[tuple[tuple[int, ...], int]]:
    """Positions of a token and channels at each stage of the view's convolutional stem, where it has one; the second
    stage halves the one and doubles the other."""
    if math.prod(view.block) == 1:
        return []
    return [(view.block, view.width), (tuple(-(-b // 2) for b in view.block), 2 * view.width)]


def _case(operation: str, shape: str, dtype: torch.dtype, variant: str, function: Callable, *args) -> Case:
    return Case(operation, f"{shape} {SHORT[dtype]} {variant}".strip(), partial(function, *args, dtype=dtype))


def _differentiate(out: Tensor, *leaves: Tensor) -> None:
    torch.autograd.grad(out, leaves, torch.empty_like(out))


def _plan(view: ViewShape) -> TokenPlan:
    """Ids that are all zero: no kernel reads them here."""
    sizes = view.keep, view.n - view.keep, view.n
    return TokenPlan(*(torch.zeros(view.batch, size, dtype=torch.int32) for size in sizes))


def _image(view: ViewShape, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    stored = dtype != torch.float32
    image = torch.empty(view.batch, view.channels, *view.size, dtype=torch.uint8 if stored else dtype)
    return image, torch.empty(view.batch, 2) if stored else None


def _values(view: ViewShape, patch: tuple[int, ...]) -> int:
    return math.prod(patch) * view.channels


def _patch_embed(view: ViewShape, dtype: torch.dtype) -> None:
    image, intensity = _image(view, dtype)
    index = block_positions(_plan(view).keep, view.grid, view.block).flatten(1)
    weight = torch.empty(view.width, _values(view, view.kernel), requires_grad=True)
    bias = torch.empty(view.width, requires_grad=True)
    with workload.autocast("cpu", dtype):
        out = patch_embed(image, weight, bias, index, view.kernel, intensity=intensity, backend="triton")
    _differentiate(out, weight, bias)


def _assemble_queries(view: ViewShape, dtype: torch.dtype) -> None:
    token = torch.empty(view.dec_width, requires_grad=True)
    table = torch.empty(view.n, view.dec_width, dtype=dtype)
    _differentiate(assemble_queries(token, table, _plan(view).masked, backend="triton"), token)


def _depthwise_conv(view: ViewShape, block: tuple[int, ...], channels: int, dtype: torch.dtype) -> None:
    x = torch.empty(view.batch, view.keep, *block, channels, dtype=dtype, requires_grad=True)
    weight = torch.empty(channels, *[5] * len(block), requires_grad=True)
    bias = torch.empty(channels, requires_grad=True)
    _differentiate(sparse_depthwise_conv(x, weight, bias, _plan(view), view.grid, backend="triton"), x, weight, bias)


def _masked_mse(view: ViewShape, norm: bool, dtype: torch.dtype) -> None:
    image, intensity = _image(view, dtype)
    plan = _plan(view)
    pred = torch.empty(*plan.masked.shape, _values(view, view.token), dtype=dtype, requires_grad=True)
    loss = masked_mse(pred, image, plan, view.token, norm=norm, intensity=intensity, backend="triton")
    _differentiate(loss, pred)


def _sparse_attention(s: AttentionShape, dtype: torch.dtype) -> None:
    """q, k and v as views of one projection where queries and keys are the same tokens, else of two."""
    queries, keys = s.batch * s.queries, s.batch * s.keys
    if s.queries == s.keys:
        q, k, v = torch.empty(queries, 3, s.heads, s.head_dim, dtype=dtype).unbind(1)
    else:
        q = torch.empty(queries, s.heads, s.head_dim, dtype=dtype)
        k, v = torch.empty(keys, 2 * DECODER_BLOCKS, s.heads, s.head_dim, dtype=dtype).unbind(1)[:2]
    leaves = [x.requires_grad_() for x in (q, k, v)]
    offsets = [torch.arange(s.batch + 1, dtype=torch.int32) * n for n in (s.queries, s.keys)]
    out = sparse_attention(*leaves, *offsets, max_q=s.queries, max_k=s.keys, backend="triton")
    _differentiate(out, *leaves)


def _augment(view: ViewShape, names: tuple[str, ...]) -> None:
    """Frames, and the motion maps that go with them; a view of three axes is a clip where tokens span frames."""
    batch, clip = view.batch, len(view.size) == 3 and view.token[0] < view.token[2]
    drawn = {"zoom": torch.empty(batch), "angle": torch.empty(batch, dtype=torch.float64),
             "shift": torch.empty(batch, 2), "flip": torch.empty(batch, 2, dtype=torch.bool),
             "gamma": torch.empty(batch), "noise": torch.empty(batch),
             "noise_key": torch.empty(batch, dtype=torch.int64)}  # fmt: skip
    how = {name: drawn[name] for name in names}
    frames = torch.empty(batch, *view.size, dtype=torch.uint8)
    extent = torch.empty(batch, len(view.size), dtype=torch.int64)
    augment_images(frames, extent, **how, clip=clip, backend="triton")
    moves = {name: how[name] for name in how if name in MOVES}
    if clip:
        frames, extent = frames[:, 0], extent[:, 1:]
    move_maps(frames, extent, **moves, backend="triton")


def _sample_mask(view: ViewShape, weighted: bool, part: bool) -> None:
    scores = torch.empty(view.batch, view.n) if weighted else None
    masked = view.n - view.keep
    sample_mask(
        scores, batch=view.batch, n=view.n, keep=view.keep, seed=0, sample_ids=torch.arange(view.batch),
        decode=round(masked / 4) if part else masked, backend="triton",
    )  # fmt: skip
