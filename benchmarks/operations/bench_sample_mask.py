"""sample_mask for the views of a batch, against random noise, two argsorts and gathers for each view.

pytest benchmarks --benchmark-only -k sample_mask
"""

import math
from functools import lru_cache

import timing
import torch

from cinema_fast.kernels import TokenPlan, mask_native, sample_mask
from cinema_fast.kernels.sample_mask import sample_mask_bytes
from cinema_fast.kernels.shapes import VIEW_SHAPES

DRAWN = ("sax", "lax", "lax", "lax")  # the views whose masks a step draws
SHAPES = {
    f"cinema-base-4-views-b{batch}": [VIEW_SHAPES[f"cinema-base-{view}-b{batch}"] for view in DRAWN]
    for batch in (64, 16)
} | {timing.SMOKE_SHAPE: [VIEW_SHAPES[timing.SMOKE_SHAPE]]}
GPU_SHAPES = list(SHAPES)[:2]
PASSES = ("fwd",)
CHECKED = (timing.SMOKE_SHAPE, "cinema-base-4-views-b16")  # held to float64 on a GPU before anything is timed
OURS = timing.OURS if timing.DEVICE == "cuda" or mask_native.PROBLEM else "native"
PEER = "rand + two argsorts + gather"


@lru_cache(maxsize=1)
def build(shape: str) -> timing.Operation:
    """Uniform masks; there is nothing to differentiate."""
    views, device = SHAPES[shape], timing.DEVICE

    def ours(backend):
        def draw():
            return [
                sample_mask(batch=s.batch, n=s.n, keep=s.keep, seed=0, stream=i, device=device, backend=backend)
                for i, s in enumerate(views)
            ]

        return draw

    def by_sorting():
        plans = []
        for s in views:
            order = torch.rand(s.batch, s.n, device=device).argsort(dim=1)
            rank = order.argsort(dim=1)
            hidden = torch.ones(s.batch, s.n, device=device)
            hidden[:, : s.keep] = 0
            plans.append((order[:, : s.keep], order[:, s.keep :], hidden.gather(1, rank)))
        return plans

    ways = {OURS: ours(OURS), "torch": ours("torch"), PEER: by_sorting}
    if device == "cuda":
        ways["compiled peer"] = torch.compile(by_sorting)

    def check(way):
        """Ours must draw, to the last token, what the CPU's PyTorch form draws; a peer some masks of these sizes."""
        drawn = ways[way]()
        if way in (OURS, "torch"):
            wanted = [
                sample_mask(batch=s.batch, n=s.n, keep=s.keep, seed=0, stream=i, backend="torch")
                for i, s in enumerate(views)
            ]
            same = all(torch.equal(a.cpu(), b) for plan, other in zip(drawn, wanted) for a, b in zip(plan, other))
            return 0.0 if same else math.inf
        exact = all(_is_partition(TokenPlan(*plan), s) for plan, s in zip(drawn, views))
        return 0.0 if exact else math.inf

    n_bytes = sum(sample_mask_bytes(s.batch, s.n, s.keep, s.n - s.keep, False) for s in views)
    return timing.Operation(
        "sample_mask", shape, torch.float32, ways, (), None, n_bytes={"fwd": n_bytes}, check=check
    )  # fmt: skip


def _is_partition(plan: TokenPlan, s) -> bool:
    ids = torch.cat([plan.keep, plan.masked], dim=1).long().sort(dim=1).values
    return plan.keep.shape == (s.batch, s.keep) and bool((ids == torch.arange(s.n, device=ids.device)).all())


def predicted() -> dict[tuple[str, str], list[str]]:
    """The operation's calls that a row on a GPU is made of, by shape and dtype, for `predict.py`."""
    batches = {shape: shape.rsplit("-", 1)[1] for shape in GPU_SHAPES}
    return {
        (shape, "float32"): [f"cinema-base-{view}-{batch} uniform" for view in DRAWN]
        for shape, batch in batches.items()
    }


def kernel_rows(device: str, smoke: bool):
    """Rows for `gpu_report.py`."""
    return timing.kernel_rows(build, "sample_mask", GPU_SHAPES, PASSES, smoke)


def pytest_generate_tests(metafunc):
    timing.parametrize(metafunc, GPU_SHAPES, PASSES, dict.fromkeys([OURS, *timing.ways(PEER)]))


def test_sample_mask(benchmark, summary, pytestconfig, shape, pass_, way):
    timing.run(benchmark, summary, build(shape), pass_, way, pytestconfig.getoption("--smoke"))
