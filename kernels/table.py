"""What `auto` picks on this machine, operation by operation, and why not what is faster."""

from functools import partial

import torch

from . import depthwise_native, mask_native, tuning
from .attention_peers import PEERS
from .augment_images import reasons as augment_reasons
from .backend import choose, triton_unsupported
from .optical_flow import reasons as flow_reasons


def table() -> list[tuple[str, str, str]]:
    """(operation, backend, why) for ordinary inputs on this machine's device: bf16 on a GPU, float32 without."""
    on_gpu = torch.cuda.is_available()
    x = torch.empty(16, 1, 64, device="cuda" if on_gpu else "cpu", dtype=torch.bfloat16 if on_gpu else torch.float32)
    triton = {"triton": lambda: triton_unsupported(x)}
    operations = {
        "sample_mask": triton | {"native": lambda: mask_native.unsupported(x.device)},
        "patch_embed": triton,
        "sparse_depthwise_conv": triton | {"native": lambda: depthwise_native.unsupported(x, x)},
        "sparse_attention": triton | {name: partial(why, x, x, x, True) for name, (_, why) in PEERS.items()},
        "assemble_queries": triton,
        "masked_mse": triton,
        "optical_flow": flow_reasons(x),
        "motion_score": flow_reasons(x),
        "augment_images": augment_reasons(x),
    }
    rows = []
    for operation, reasons in operations.items():
        picked = choose(operation, "auto", reasons)
        passed = list(reasons)[: list(reasons).index(picked)] if picked in reasons else list(reasons)
        why = "; ".join(f"{name}: {reasons[name]()[0]}" for name in passed if reasons[name]())
        why = why or "fastest"
        if operation == "sparse_attention" and on_gpu and tuning.has_table(x.device):
            why += f"; equally long sequences as kernels/tuned/{tuning.slug(tuning.gpu_of(x.device))}.json says"
        rows.append((operation, picked, why))
    return rows
