"""What the rows of benchmarks/operations/bench_*.py launch on a GPU: {(operation, pass, shape, dtype): kernels}.

Calls are those of the audit, on fake CUDA tensors.
"""

from collections import Counter
from unittest import mock

import bench_assemble_queries
import bench_augment_images
import bench_sample_mask
import bench_sparse_depthwise_conv
import timing
import torch
import workload
from audit_launches import Case, cases
from faked_gpu import faked_gpu
from operation_work import Compiler, works
from step_cost import Work
from step_traffic import OURS, Operator, Traffic

from cinema_fast.kernels.shapes import ATTENTION, DEPTHWISE

BACKWARD = ("_backward", "_bwd", "_dw", "_dx")  # ends of the operators' names
# augment_images: frames in and float32 out, and once more float32 in and out
AUGMENT_BYTES, AUGMENT_LAUNCHES = 13, 2

Row = tuple[str, str, str, str]


def kernel_work(code_of: Compiler) -> dict[Row, Counter[Work]]:
    """Of every row; dtypes as the rows name them."""
    audited = {(case.operation, case.name): case for case in cases()}
    found = {}
    for name, shape, dtype, names in _named_cases():
        operators = sum((_operators(audited[name, case]) for case in names), Counter())
        for pass_ in ("fwd", "bwd"):
            mine = Counter({o: n for o, n in operators.items() if o.name.endswith(BACKWARD) == (pass_ == "bwd")})
            if mine:
                found[name, pass_, shape, dtype] = works(mine, code_of)
    for shape, size in bench_augment_images.GPU_SHAPES.items():
        moved = AUGMENT_BYTES * torch.Size(size).numel() / AUGMENT_LAUNCHES
        found["augment_images", "fwd", shape, "float32"] = Counter({Work(moved): AUGMENT_LAUNCHES})
    return found


def _named_cases():
    """(operation, shape, dtype, the audit's cases that it is made of) of the rows on a GPU."""
    for shape in ATTENTION:
        if shape != timing.SMOKE_SHAPE:
            yield "sparse_attention", shape, "bfloat16", [f"{shape} bf16"]
    for shape in workload.GPU_IMAGE_SHAPES:
        yield "patch_embed", shape, "bfloat16", [f"{shape} bf16"]
        yield "masked_mse", shape, "bfloat16", [f"{shape} bf16"]
    for shape in bench_sparse_depthwise_conv.GPU_SHAPES:
        view, batch = shape.rsplit("-", 2)[0], shape.rsplit("-", 1)[1]
        block = "x".join(map(str, DEPTHWISE[shape].block))
        yield "sparse_depthwise_conv", shape, "bfloat16", [f"{view}-{batch} bf16 {block}"]
    for shape in bench_assemble_queries.GPU_SHAPES:
        yield "assemble_queries", shape, "float32", [f"{shape} fp32"]
    for shape in list(bench_sample_mask.SHAPES)[:2]:
        batch = shape.rsplit("-", 1)[1]
        views = ("sax", "lax", "lax", "lax")
        yield "sample_mask", shape, "float32", [f"cinema-base-{view}-{batch} uniform" for view in views]


def _operators(case: Case) -> Counter[Operator]:
    """Our operators that a case calls, forward and backward."""
    autocast = workload.autocast
    on_gpu = mock.patch.object(workload, "autocast", lambda _, dtype: autocast("cuda", dtype))
    with faked_gpu(), on_gpu, torch.device("cuda"), Traffic() as traffic:
        case.call()
    return Counter({o: n for o, n in traffic.operators.items() if o.name.startswith(OURS)})
