"""prototype_loss against the loss as DINO's public code computes it: all logits, and a log-softmax for each pair.

pytest benchmarks --benchmark-only -k prototype_loss

Leaves are float32, as normalisation leaves them; products are under autocast on a GPU. Our forward computes the
student's gradient too. Liger's fused linear distillation losses are no peers: they have no centre, and compare a row
with one other row of logits.
"""

from functools import lru_cache

import timing
import torch
import torch.nn.functional as F
import workload

from cinema_fast.kernels.prototype_loss import (
    prototype_loss,
    prototype_loss_bytes,
    prototype_loss_flops,
    prototype_loss_ref,
)
from cinema_fast.kernels.shapes import PROTOTYPE_SHAPES

CPU_SHAPES = ("cmrfm-demo-b16",)
GPU_SHAPES = [name for name in PROTOTYPE_SHAPES if name != timing.SMOKE_SHAPE]
SHAPES = GPU_SHAPES if timing.DEVICE == "cuda" else CPU_SHAPES
PASSES = ("fwd", "bwd")
CHECKED = (timing.SMOKE_SHAPE, "cmrfm-small8-b16")  # held to float64 on a GPU before anything is timed
PEER = "log-softmax a pair"
TEMPS = {"student_temp": 0.1, "teacher_temp": 0.04}


def by_pairs(student, teacher, prototypes, teacher_prototypes, centre, student_temp, teacher_temp):
    """The loss as it is published."""
    q = F.softmax((F.linear(teacher, teacher_prototypes) - centre) / teacher_temp, dim=-1).detach().chunk(2)
    crops = (F.linear(student, prototypes) / student_temp).chunk(2 * len(student) // len(teacher))
    terms = [
        torch.sum(-q[i] * F.log_softmax(crops[j], dim=-1), dim=-1).mean()
        for i in range(2) for j in range(len(crops)) if i != j
    ]  # fmt: skip
    return sum(terms) / len(terms)


@lru_cache(maxsize=1)
def build(shape: str) -> timing.Operation:
    """Unit vectors, those of the teacher near the student's."""
    s, device = PROTOTYPE_SHAPES[shape], timing.DEVICE
    generator = torch.Generator(device).manual_seed(0)

    def rows(n, near=0.0):
        return F.normalize(near + 0.05 * torch.randn(n, s.width, device=device, generator=generator), dim=1)

    student, prototypes = rows(s.n_crops * s.batch), rows(s.prototypes)
    teacher, teacher_prototypes = rows(2 * s.batch, student[: 2 * s.batch]), rows(s.prototypes, prototypes)
    centre = 0.1 * torch.randn(1, s.prototypes, device=device, generator=generator)
    leaves = student.requires_grad_(), prototypes.requires_grad_()

    def way(function):
        def loss(student, prototypes):
            tensors = student, teacher, prototypes, teacher_prototypes, centre
            with workload.autocast(torch.device(device), timing.DTYPE):
                return function(*tensors, **TEMPS)

        return loss

    def ours(backend):
        return way(lambda *args, **temps: prototype_loss(*args, **temps, backend=backend)[0])

    ways = {timing.OURS: ours(timing.OURS), "torch": ours("torch"), PEER: way(by_pairs)}
    if device == "cuda":
        ways["compiled peer"] = torch.compile(way(by_pairs))
    sizes = len(student), len(teacher), s.prototypes, s.width

    def oracle(student, prototypes):
        exact = student, teacher.double(), prototypes, teacher_prototypes.double(), centre.double()
        return prototype_loss_ref(*exact, **TEMPS)[0]

    return timing.Operation(
        "prototype_loss", shape, timing.DTYPE, ways, leaves, oracle,
        n_bytes={p: prototype_loss_bytes(*sizes, 4, backward=p == "bwd") for p in PASSES},
        flops={p: prototype_loss_flops(*sizes, backward=p == "bwd") for p in PASSES},
        exponentials=dict.fromkeys(PASSES, sum(sizes[:2]) * s.prototypes),  # once a logit and pass, at least
    )  # fmt: skip


def predicted() -> dict[tuple[str, str], list[str]]:
    """The operation's calls that a row on a GPU is made of, by shape and dtype, for `predict.py`."""
    return {(shape, "bfloat16"): [f"{shape} bf16"] for shape in GPU_SHAPES}


def kernel_rows(device: str, smoke: bool):
    """Rows for `gpu_report.py`."""
    return timing.kernel_rows(build, "prototype_loss", SHAPES, PASSES, smoke)


def pytest_generate_tests(metafunc):
    timing.parametrize(metafunc, SHAPES, PASSES, timing.ways(PEER))


def test_prototype_loss(benchmark, summary, pytestconfig, shape, pass_, way):
    timing.run(benchmark, summary, build(shape), pass_, way, pytestconfig.getoption("--smoke"))
