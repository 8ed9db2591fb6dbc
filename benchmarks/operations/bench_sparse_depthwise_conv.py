"""sparse_depthwise_conv at visible tokens, against PyTorch's depthwise convolution of the whole map.

Dense: what a model that masks its maps computes, on maps that are there already, in PyTorch's own layout and in
channels-last. Rows and maps are in the compute dtype, parameters float32, under autocast where maps are convolved.

    pytest benchmarks --benchmark-only -k sparse_depthwise_conv
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import timing
import torch
import torch.nn.functional as F
from torch import Tensor

from cinema_fast.kernels import depthwise_native, sample_mask
from cinema_fast.kernels.shapes import DEPTHWISE_SHAPES
from cinema_fast.kernels.sparse_depthwise_conv import (
    position_index,
    sparse_depthwise_conv,
    sparse_depthwise_conv_bytes,
    sparse_depthwise_conv_plan_flops,
    sparse_depthwise_conv_ref,
)
from cinema_fast.models.precision import autocast

GPU_SHAPES = (
    "cinema-base-sax-stage0-b64",
    "cinema-base-sax-stage1-b64",
    "cinema-base-sax-stage0-b16",
    "cinema-base-lax-stage0-b64",
    "cinema-base-lax-stage1-b64",
)
# larger maps are beyond what PyTorch's CPU sums to a bias's gradient, channels-last, within the budget
SHAPES = GPU_SHAPES if timing.DEVICE == "cuda" else ("cinema-base-lax-stage1-b16",)
PASSES = ("fwd", "bwd")
CHECKED = (timing.SMOKE_SHAPE, "cinema-base-sax-stage0-b16")  # held to float64 on a GPU before anything is timed
PEERS = ("dense", "dense channels-last")
OURS = timing.OURS if timing.DEVICE == "cuda" or depthwise_native.PROBLEM else "native"


@dataclass
class DepthwiseConv(timing.Operation):
    """Multiplies and adds float32 on the ordinary units, whatever the dtype of its rows.

    dense: of the ways that convolve maps, the convolution alone and the map; making the map and taking the visible rows
    from it, which the gate needs, is not timed.
    """

    dense: dict[str, tuple[Callable[..., Tensor], Tensor]] = field(default_factory=dict)

    def call(self, pass_: str, way: str) -> Callable[[], object]:
        """What is timed."""
        if way not in self.dense:
            return super().call(pass_, way)
        convolve, dense_map = self.dense[way]
        return replace(self, ways={way: convolve}, leaves=(dense_map, *self.leaves[1:]), dense={}).call(pass_, way)

    def limit(self, pass_: str) -> tuple[float, str]:
        """Seconds that the data sheet allows, and by what it is bound."""
        peak = timing.peaks()
        moved, computed = self.n_bytes[pass_] / peak.memory, self.flops[pass_] / peak.ordinary
        return max(moved, computed), "memory" if moved >= computed else "compute"


@lru_cache(maxsize=1)
def build(shape: str) -> DepthwiseConv:
    """Float32 parameters, and rows of the tokens that a drawn mask leaves."""
    s, dtype, device = DEPTHWISE_SHAPES[shape], timing.DTYPE, timing.DEVICE
    torch.manual_seed(0)
    plan = sample_mask(batch=s.batch, n=math.prod(s.grid), keep=s.keep, seed=0, device=device)
    x = torch.randn(s.batch, s.keep, *s.block, s.channels, device=device).to(dtype).requires_grad_()
    weight = (0.1 * torch.randn(s.channels, *s.kernel, device=device)).requires_grad_()
    bias = torch.randn(s.channels, device=device).requires_grad_()
    index, size = position_index(plan.keep, s.grid, s.block), [g * b for g, b in zip(s.grid, s.block)]
    conv, channels_last = {2: (F.conv2d, torch.channels_last), 3: (F.conv3d, torch.channels_last_3d)}[len(size)]

    def convolve(dense_map, weight, bias):
        with autocast(device, dtype):
            return conv(dense_map, weight.unsqueeze(1), bias, padding="same", groups=s.channels)

    def to_map(x, layout):
        rows = x.new_zeros(s.batch * math.prod(size), s.channels).index_put((index,), x.reshape(-1, s.channels))
        return rows.view(s.batch, *size, s.channels).movedim(-1, 1).contiguous(memory_format=layout)

    def in_rows(convolve, layout):
        def run(x, weight, bias):
            out = convolve(to_map(x, layout), weight, bias)
            return out.movedim(1, -1).reshape(-1, s.channels)[index].view(x.shape)

        return run

    def ours(backend):
        return lambda x, weight, bias: sparse_depthwise_conv(x, weight, bias, plan, s.grid, backend=backend)

    peers = dict(zip(PEERS, ((convolve, torch.contiguous_format), (convolve, channels_last))))
    if device == "cuda":
        peers["compiled peer"] = torch.compile(convolve), torch.contiguous_format
    maps = {layout: to_map(x.detach(), layout).requires_grad_() for _, layout in peers.values()}
    moved = sparse_depthwise_conv_bytes(x, weight)
    flops = sparse_depthwise_conv_plan_flops(plan, s.grid, s.block, s.kernel, s.channels)
    return DepthwiseConv(
        "sparse_depthwise_conv", shape, dtype,
        {OURS: ours(OURS), "torch": ours("torch")} | {way: in_rows(*peers[way]) for way in peers},
        (x, weight, bias), lambda x, weight, bias: sparse_depthwise_conv_ref(x, weight, bias, plan, s.grid),
        n_bytes={"fwd": moved, "bwd": moved * 3 // 2}, flops={"fwd": flops, "bwd": 2 * flops},
        dense={way: (convolve, maps[layout]) for way, (convolve, layout) in peers.items()},
    )  # fmt: skip


def predicted() -> dict[tuple[str, str], list[str]]:
    """The operation's calls that a row on a GPU is made of, by shape and dtype, for `predict.py`."""
    found = {}
    for shape in GPU_SHAPES:
        view, _, batch = shape.rsplit("-", 2)
        found[shape, "bfloat16"] = [f"{view}-{batch} bf16 {'x'.join(map(str, DEPTHWISE_SHAPES[shape].block))}"]
    return found


def kernel_rows(device: str, smoke: bool):
    """Rows for `gpu_report.py`."""
    return timing.kernel_rows(build, "sparse_depthwise_conv", SHAPES, PASSES, smoke)


def pytest_generate_tests(metafunc):
    timing.parametrize(metafunc, SHAPES, PASSES, dict.fromkeys([OURS, *timing.ways(*PEERS)]))


def test_sparse_depthwise_conv(benchmark, summary, pytestconfig, shape, pass_, way):
    timing.run(benchmark, summary, build(shape), pass_, way, pytestconfig.getoption("--smoke"))
