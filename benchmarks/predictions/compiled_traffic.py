"""What torch.compile makes of a model on a GPU that is not there: the kernels that Inductor writes, and their bytes.

Inductor runs as far as its code; nothing is compiled to machine code and nothing runs. What PyTorch would try out on
the device first is left out: patterns of attention (the models have an operation of their own) and the padding of
matrices (none here has a side that needs it).
"""

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple
from unittest import mock

import torch._functorch.config
import torch._inductor.config
import triton
from audit_launches import NoDevice
from functorch.compile import make_boxed_func
from torch import nn
from torch._inductor import compile_fx
from torch._inductor.fx_passes import joint_graph
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import MultiOutput
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._inductor.utils import get_gpu_type, is_big_gpu
from torch.utils._triton import has_triton

ARCH = 90


class CompiledTraffic(NamedTuple):
    """Of forward and backward. generated: how many kernels of Inductor's are launched that read and write so many
    bytes; extern: how often Inductor calls an operator with so many bytes, by (name, bytes): GEMMs, operations of ours
    and what it has no code for."""

    generated: Counter[int]
    extern: Counter[tuple[str, int]]


class _Enough(Exception):
    """Inductor has written its code."""


def compiled_traffic(model: nn.Module, call: Callable[[nn.Module], object]) -> CompiledTraffic:
    """Compiles `model`, forward and backward, as `call(compiled model)` calls it; inside a `faked_gpu()` block."""
    found = CompiledTraffic(Counter(), Counter())

    def stop_at_code(graph: GraphLowering):
        graph.codegen()
        for node in graph.scheduler.nodes:
            if isinstance(node, ExternKernelSchedulerNode):
                if not isinstance(node.node, MultiOutput):  # which names one of an operator's results
                    found.extern[_extern_name(node), node.get_read_write_buffers_sizes()] += 1
            elif not isinstance(node, NopKernelSchedulerNode):
                found.generated[node.get_read_write_buffers_sizes()] += 1
        raise _Enough

    def count(graph_module, inputs, **how):
        try:
            compile_fx.compile_fx_inner(copy.deepcopy(graph_module), inputs, **how)
        except Exception as error:
            if not _is_enough(error):
                raise
        return make_boxed_func(graph_module.forward)

    def backend(graph_module, inputs):
        return compile_fx.compile_fx(graph_module, inputs, inner_compile=count)

    driver = triton.runtime.driver._active
    with ExitStack() as stack:
        for name in ("compile_to_module", "_compile_to_module"):
            stack.enter_context(mock.patch.object(GraphLowering, name, stop_at_code))
        stack.enter_context(mock.patch.object(joint_graph, "lazy_init", lambda device: None))
        untried = {"joint_graph_constant_folding": False, "shape_padding": False}
        stack.enter_context(torch._inductor.config.patch(untried | {"fx_graph_cache": False, "compile_threads": 1}))
        at_once = {"enable_autograd_cache": False, "force_non_lazy_backward_lowering": True}
        stack.enter_context(torch._functorch.config.patch(at_once))
        triton.runtime.driver.set_active(NoDevice(ARCH))
        try:
            call(torch.compile(model, fullgraph=True, dynamic=False, backend=backend))
        finally:
            triton.runtime.driver.set_active(driver)
            torch.compiler.reset()
            for asked in (has_triton, get_gpu_type, is_big_gpu):  # they keep what they were told of the faked GPU
                asked.cache_clear()
    return found


def _is_enough(error: BaseException | None) -> bool:
    """Whether Inductor's own exceptions were raised because of ours."""
    while error is not None and not isinstance(error, _Enough):
        error = error.__cause__ or getattr(error, "inner_exception", None)
    return error is not None


def _extern_name(node: ExternKernelSchedulerNode) -> str:
    """As in aten::mm or cinema_fast::sparse_attention."""
    overload = getattr(node.node, "op_overload", None)
    if overload is not None:
        return overload.name().split(".")[0]
    return "aten::" + node.node.get_kernel_name().rpartition(".")[2]
