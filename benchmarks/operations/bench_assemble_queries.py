"""assemble_queries in float32 (queries are the decoder's residual stream), against expand + boolean index + cat.

pytest benchmarks --benchmark-only -k assemble_queries
"""

from functools import lru_cache

import timing
import torch

from cinema_fast.kernels import sample_mask
from cinema_fast.kernels.assemble_queries import assemble_queries, assemble_queries_bytes, assemble_queries_ref
from cinema_fast.kernels.shapes import VIEW_SHAPES

GPU_SHAPES = ("cinema-base-sax-b64", "cinema-base-sax-b16", "cinema-base-lax-b64", "heartmae-clip-b16")
SHAPES = GPU_SHAPES if timing.DEVICE == "cuda" else ("cinema-base-sax-b16", "cinema-base-lax-b16")
PASSES = ("fwd", "bwd")
CHECKED = (timing.SMOKE_SHAPE, "cinema-base-sax-b16")  # held to float64 on a GPU before anything is timed
PEER = "expand + boolean index + cat"


@lru_cache(maxsize=1)
def build(shape: str) -> timing.Operation:
    """A mask token, a position table and a batch's masks."""
    s, device = VIEW_SHAPES[shape], timing.DEVICE
    torch.manual_seed(0)
    token = torch.randn(s.dec_width, device=device).requires_grad_()
    table = torch.randn(s.n, s.dec_width, device=device)
    plan = sample_mask(batch=s.batch, n=s.n, keep=s.keep, seed=0, device=device)
    hidden = plan.slot < 0

    def by_mask(token):
        queries = (token + table).expand(s.batch, -1, -1)[hidden].view(s.batch, -1, s.dec_width)
        return torch.cat([queries], dim=1)

    def ours(backend):
        return lambda token: assemble_queries(token, table, plan.masked, backend=backend)

    ways = {timing.OURS: ours(timing.OURS), "torch": ours("torch"), PEER: by_mask}
    if device == "cuda":  # a boolean index cannot be compiled
        ways["compiled peer"] = torch.compile(ways["torch"])
    moved = assemble_queries_bytes(plan.masked.numel(), s.dec_width, 4)
    return timing.Operation(
        "assemble_queries", shape, torch.float32, ways, (token,),
        lambda token: assemble_queries_ref(token, table.double(), plan.masked),
        n_bytes=dict.fromkeys(PASSES, moved),
    )  # fmt: skip


def predicted() -> dict[tuple[str, str], list[str]]:
    """The operation's calls that a row on a GPU is made of, by shape and dtype, for `predict.py`."""
    return {(shape, "float32"): [f"{shape} fp32"] for shape in GPU_SHAPES}


def kernel_rows(device: str, smoke: bool):
    """Rows for `gpu_report.py`."""
    return timing.kernel_rows(build, "assemble_queries", SHAPES, PASSES, smoke)


def pytest_generate_tests(metafunc):
    timing.parametrize(metafunc, SHAPES, PASSES, timing.ways(PEER))


def test_assemble_queries(benchmark, summary, pytestconfig, shape, pass_, way):
    timing.run(benchmark, summary, build(shape), pass_, way, pytestconfig.getoption("--smoke"))
