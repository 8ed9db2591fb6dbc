"""prototype_loss against the pairs' cross-entropies, term after term in float64."""

import itertools
import math
import statistics
import sys

import pytest
import torch
import torch.nn.functional as F
from bench_prototype_loss import by_pairs
from live_memory import LiveMemory
from machine import has_gpu, shared_path
from safetensors.torch import load_file
from tolerances import assert_close

from cinema_fast.kernels import BackendError, launches
from cinema_fast.kernels.prototype_loss import (
    prototype_loss,
    prototype_loss_bytes,
    prototype_loss_config,
    prototype_loss_flops,
    prototype_loss_ref,
)

module = sys.modules[prototype_loss.__module__]  # whose name is the function's
# images, crops, width of the bottleneck, prototypes
SHAPES = {
    "some of everything": (3, 5, 48, 203),
    "one image": (1, 3, 16, 70),
    "global crops alone": (5, 2, 32, 64),
    "fewer prototypes than a tile": (2, 4, 64, 5),
    "wide, rows beyond a tile": (9, 10, 256, 150),
    "no multiple of a tile's width": (2, 3, 27, 40),
}
TEMPS = {"student_temp": 0.1, "teacher_temp": 0.04}


def make(shape, dtype=torch.float32, device="cpu"):
    """student, teacher, prototypes, teacher_prototypes and centre; teacher and student are alike, as in training."""
    batch, n_crops, width, n_prototypes = shape
    generator = torch.Generator().manual_seed(0)

    def rows(n, near=None):
        x = torch.randn(n, width, generator=generator, dtype=torch.float64)
        return F.normalize(x if near is None else near + 0.05 * x, dim=1)

    student, prototypes = rows(n_crops * batch), rows(n_prototypes)
    teacher, teacher_prototypes = rows(2 * batch, student[: 2 * batch]), rows(n_prototypes, prototypes)
    centre = 0.1 * torch.randn(1, n_prototypes, generator=generator)
    made = [x.to(device, dtype) for x in (student, teacher, prototypes, teacher_prototypes)]
    return *(x.requires_grad_(i in (0, 2)) for i, x in enumerate(made)), centre.to(device)


def exact(inputs):
    """The same values in float64"""
    return [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]


def check(inputs, backend, dtype, upstream=1.75, **temps):
    loss, figures = prototype_loss(*inputs, **temps, backend=backend)
    found = torch.autograd.grad(loss * upstream, (inputs[0], inputs[2]))
    reference = exact(inputs)
    expected, expected_figures = prototype_loss_ref(*reference, **temps)
    gradients = torch.autograd.grad(expected * upstream, (reference[0], reference[2]))
    assert loss.shape == () and loss.dtype == torch.promote_types(dtype, torch.float32)
    assert figures.shape == (2,) and figures.dtype == torch.float32 and not figures.requires_grad
    assert_close(loss, expected, dtype)
    assert_close(figures, expected_figures, torch.float32 if dtype == torch.float64 else dtype)
    for name, x, actual, gradient in zip(("student", "prototypes"), inputs[::2], found, gradients):
        assert actual.dtype == x.dtype
        assert_close(actual, gradient, dtype, name=name)


def loss_by_loops(student, teacher, prototypes, teacher_prototypes, centre, student_temp, teacher_temp):
    """The definition, an image, a pair and a prototype at a time, by Python's numbers"""

    def log_softmax(row, keys, shift, temp):
        logits = [(float(row @ key) - float(c)) / temp for key, c in zip(keys, shift)]
        top = max(logits)
        return [x - top - math.log(sum(math.exp(y - top) for y in logits)) for x in logits]

    n_samples = len(teacher) // 2
    log_q = [log_softmax(row, teacher_prototypes, centre[0], teacher_temp) for row in teacher]
    log_p = [log_softmax(row, prototypes, torch.zeros(len(prototypes)), student_temp) for row in student]
    crops = range(len(student) // n_samples)
    terms = [
        -sum(math.exp(a) * b for a, b in zip(log_q[i * n_samples + image], log_p[j * n_samples + image]))
        for i, j, image in itertools.product(range(2), crops, range(n_samples)) if i != j
    ]  # fmt: skip
    mean = [statistics.fmean(math.exp(row[k]) for row in log_q) for k in range(len(prototypes))]
    entropy = statistics.fmean(-sum(math.exp(x) * x for x in row) for row in log_q)
    divergence = statistics.fmean(
        sum(math.exp(x) * (x - math.log(m)) for x, m in zip(row, mean)) for row in log_q
    )
    return statistics.fmean(terms), (entropy, divergence)


@pytest.mark.parametrize("shape", [(3, 5, 16, 23), (2, 2, 16, 9)], ids=str)
def test_the_oracle_is_the_definition(shape):
    inputs = exact(make(shape))
    loss, figures = prototype_loss_ref(*inputs, **TEMPS)
    expected, expected_figures = loss_by_loops(*(x.detach() for x in inputs), **TEMPS)
    assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    assert_close(figures, torch.tensor(expected_figures, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loss_figures_and_gradients(backend, device, shape, dtype):
    check(make(shape, dtype, device), backend, dtype, **TEMPS)


@pytest.mark.parametrize("shape", [*SHAPES.values(), (3, 4, 19, 37)], ids=[*SHAPES, "odd width"])
def test_loss_figures_and_gradients_in_float64(shape):
    check(make(shape, torch.float64), "torch", torch.float64, **TEMPS)


@pytest.mark.parametrize("most", [1, 300, 1000], ids="{} logits".format)
def test_chunks_of_columns_make_no_difference(monkeypatch, most):
    monkeypatch.setattr(module, "MOST_LOGITS", most)
    check(make((3, 5, 48, 20), torch.float64), "torch", torch.float64, **TEMPS)


def test_extreme_logits(backend, device):
    """A teacher that is all but certain, and a centre ten times as large as all logits; then all but uniform rows"""
    inputs = make((3, 4, 32, 101), device=device)
    inputs[4].mul_(100)
    check(inputs, backend, torch.float32, student_temp=0.01, teacher_temp=0.01)
    check(inputs, backend, torch.float32, student_temp=5.0, teacher_temp=50.0)


def test_temperature_on_the_device(backend, device):
    inputs = make(SHAPES["some of everything"], device=device)
    loss, figures = prototype_loss(*inputs, **TEMPS, backend=backend)
    for temp in (torch.tensor(0.04, device=device), torch.tensor([0.04], device=device)):
        again = prototype_loss(*inputs, student_temp=0.1, teacher_temp=temp, backend=backend)
        assert torch.equal(again[0], loss) and torch.equal(again[1], figures)


def test_one_prototype_has_no_loss(backend, device):
    loss, figures = prototype_loss(*make((2, 3, 16, 1), device=device), **TEMPS, backend=backend)
    assert abs(float(loss.detach())) < 1e-5 and float(figures.abs().max()) < 1e-5


@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)], ids=str)
def test_only_needed_gradients_are_computed(backend, device, needed):
    inputs = make(SHAPES["some of everything"], device=device)
    loss, figures = prototype_loss(*inputs, **TEMPS, backend=backend)
    gradients = torch.autograd.grad(loss, (inputs[0], inputs[2]))
    student, prototypes = (x.detach().requires_grad_(need) for x, need in zip(inputs[::2], needed))
    some, some_figures = prototype_loss(student, inputs[1], prototypes, *inputs[3:], **TEMPS, backend=backend)
    assert_close(some, loss.double())
    assert_close(some_figures, figures.double())
    assert some.requires_grad == any(needed)
    if any(needed):
        some.backward()
    for x, need, gradient in zip((student, prototypes), needed, gradients):
        assert (x.grad is not None) == need
        if need:
            assert_close(x.grad, gradient.double())


def test_teacher_and_centre_get_no_gradient(backend, device):
    inputs = [x.detach().requires_grad_() for x in make(SHAPES["one image"], device=device)]
    prototype_loss(*inputs, **TEMPS, backend=backend)[0].backward()
    assert [x.grad is not None for x in inputs] == [True, False, True, False, False]


def test_same_bits_twice(backend, device):
    inputs = make(SHAPES["wide, rows beyond a tile"], device=device)
    results = []
    for _ in range(2):
        loss, figures = prototype_loss(*inputs, **TEMPS, backend=backend)
        results.append((loss.detach(), figures, *torch.autograd.grad(loss, (inputs[0], inputs[2]))))
    assert all(torch.equal(a, b) for a, b in zip(*results))
    assert backend != "triton" or {"prototype_loss", "prototype_loss_bwd"} <= launches().keys()


def test_a_graph_is_differentiated_twice_alike(backend, device):
    inputs = make(SHAPES["one image"], device=device)
    loss, _ = prototype_loss(*inputs, **TEMPS, backend=backend)
    once, again = (torch.autograd.grad(3 * loss, (inputs[0], inputs[2]), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again))


def test_strides_do_not_matter(backend, device):
    inputs = make(SHAPES["some of everything"], device=device)
    loss, _ = prototype_loss(*inputs, **TEMPS, backend=backend)
    across = [x.detach().T.contiguous().T.requires_grad_(x.requires_grad) for x in inputs]
    other, _ = prototype_loss(*across, **TEMPS, backend=backend)
    assert_close(other, loss.double())
    for a, b in zip(*(torch.autograd.grad(x, (of[0], of[2])) for x, of in ((other, across), (loss, inputs)))):
        assert_close(a, b.double())


def test_under_autocast(backend, device):
    """Gradients of float32 prototypes are float32, though products are in 16 bits"""
    inputs = make(SHAPES["some of everything"], device=device)
    with torch.autocast(device, torch.bfloat16):
        loss, figures = prototype_loss(*inputs, **TEMPS, backend=backend)
    assert loss.dtype == torch.float32
    found = torch.autograd.grad(loss, (inputs[0], inputs[2]))
    reference = exact([x.detach().bfloat16().requires_grad_(x.requires_grad) for x in inputs[:4]] + [inputs[4]])
    expected, expected_figures = prototype_loss_ref(*reference, **TEMPS)
    assert_close(loss, expected, torch.bfloat16)
    assert_close(figures, expected_figures, torch.bfloat16)
    for actual, gradient in zip(found, torch.autograd.grad(expected, (reference[0], reference[2]))):
        assert actual.dtype == torch.float32
        assert_close(actual, gradient, torch.bfloat16)


def test_one_graph_without_breaks(backend, device):
    inputs = make(SHAPES["some of everything"], device=device)
    temps = {"student_temp": 0.1, "teacher_temp": torch.tensor(0.04, device=device)}
    args = *inputs, 0.1, temps["teacher_temp"], torch.float32
    if backend == "triton":
        torch.library.opcheck(torch.ops.cinema_fast.prototype_loss, (*args, True))
    else:
        torch.library.opcheck(torch.ops.cinema_fast.prototype_loss_chunked, (*args, True, True))
    torch.compiler.reset()
    results = []
    for function in (prototype_loss, torch.compile(prototype_loss, fullgraph=True, backend="aot_eager")):
        loss, figures = function(*inputs, **temps, backend=backend)
        results.append((loss.detach(), figures, *torch.autograd.grad(loss, (inputs[0], inputs[2]))))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_gradcheck():
    inputs = make((2, 3, 5, 7), torch.float64)

    def loss(student, prototypes):
        return prototype_loss(student, inputs[1], prototypes, *inputs[3:], **TEMPS)[0]

    torch.autograd.gradcheck(loss, (inputs[0], inputs[2]))


def test_the_public_code_of_dino(backend, device):
    """Its logits as rows, with unit vectors as prototypes"""
    file = load_file(shared_path("golden/dino_tiny.safetensors"), device)
    unit = torch.eye(80, device=device)
    for step, teacher_temp in enumerate((0.04, 0.07, 0.07)):
        student, teacher, centre = (file[f"{x}.{step}"] for x in ("student_logits", "teacher_logits", "center"))
        loss, _ = prototype_loss(
            student, teacher, unit, unit, centre, student_temp=0.1, teacher_temp=teacher_temp, backend=backend
        )
        assert_close(loss, file[f"loss.{step}"].double())


@pytest.mark.parametrize(
    ("name", "bad", "match"),
    [
        ("student", torch.zeros(15), r"expected student \(n_crops \* B, D\), got \(15,\)"),
        ("student", torch.zeros(0, 48), "expected student"),
        ("student", torch.zeros(14, 48), "student must have B for each of 2 or more crops, got 14"),
        ("student", torch.zeros(3, 48), "2 or more crops, got 3"),
        ("student", torch.zeros(15, 48, dtype=torch.int64), "expected student to be floating"),
        ("teacher", torch.zeros(5, 48), r"expected teacher \(2 \* B, 48\), got \(5, 48\)"),
        ("teacher", torch.zeros(6, 32), r"got \(6, 32\)"),
        ("teacher", torch.zeros(0, 48), r"got \(0, 48\)"),
        ("teacher", torch.zeros(6, 48, device="meta"), "student is on cpu, teacher on meta"),
        ("prototypes", torch.zeros(203, 32), r"expected prototypes \(K, 48\), got \(203, 32\)"),
        ("prototypes", torch.zeros(0, 48), r"got \(0, 48\)"),
        ("prototypes", torch.zeros(203, 48, dtype=torch.float64), "student is torch.float32, prototypes torch.float64"),
        ("teacher_prototypes", torch.zeros(202, 48), r"expected teacher_prototypes \(203, 48\), got \(202, 48\)"),
        ("centre", torch.zeros(203), r"expected centre \(1, 203\), got \(203,\)"),
        ("student_temp", 0.0, "expected student_temp to be a number above 0, got 0.0"),
        ("student_temp", torch.tensor(0.1), "expected student_temp"),
        ("teacher_temp", -1.0, "expected teacher_temp"),
        ("teacher_temp", float("nan"), "expected teacher_temp"),
        ("teacher_temp", torch.ones(2), r"expected teacher_temp to be one number, got \(2,\)"),
        ("teacher_temp", torch.ones((), device="meta"), "teacher_temp on meta"),
    ],
)
def test_what_does_not_fit_is_refused(name, bad, match):
    names = ("student", "teacher", "prototypes", "teacher_prototypes", "centre")
    given = dict(zip(names, make(SHAPES["some of everything"]))) | TEMPS
    with pytest.raises(ValueError, match=match):
        prototype_loss(**given | {name: bad})


def full_size(device="meta", dtype=torch.bfloat16):
    """64 images, ten crops, 65,536 prototypes: normalised copies in the dtype of the products"""
    n_rows, n_targets, (n_prototypes, width) = 640, 128, (65536, 256)
    rows = [torch.zeros(n, width, dtype=dtype, device=device) for n in (n_rows, n_targets, n_prototypes, n_prototypes)]
    return *(x.requires_grad_(i in (0, 2)) for i, x in enumerate(rows)), torch.zeros(1, n_prototypes, device=device)


def memory_of_pairs(inputs) -> int:
    """Bytes of the loss as published, forward and backward, beside its inputs and the gradient of the prototypes. All
    of it in 16 bits but the teacher's softmax: less than under autocast."""
    with LiveMemory(inputs) as memory:
        torch.autograd.grad(by_pairs(*inputs, **TEMPS), (inputs[0], inputs[2]))
    return memory.peak - inputs[2].nbytes


def test_a_tenth_of_the_memory():
    inputs = full_size()
    temp = torch.zeros((), device="meta")
    with torch.no_grad(), LiveMemory([*inputs, temp]) as memory:
        results = module._chunked_op._init_fn(*inputs, 0.1, temp, torch.bfloat16, True, True)
    del results
    assert memory.now == 0 < memory.peak
    assert memory.peak - inputs[2].nbytes < memory_of_pairs(inputs) / 10


@pytest.mark.parametrize("dtype", module.DTYPES, ids=str)
def test_configurations_are_powers_of_two(dtype):
    for width in range(16, module.MAX_WIDTH + 1, 16):
        for tile in (tile for n in (6, 128) for tile in prototype_loss_config(n, width, dtype).values()):
            assert all(n & (n - 1) == 0 for n in tile.values()) and min(tile["ROWS"], tile["COLS"]) >= 16


def test_bytes_and_flops_are_those_of_rows_prototypes_and_centre():
    sizes = 50, 10, 300, 32  # the student's and the teacher's rows, prototypes, width
    forward, backward = (prototype_loss_bytes(*sizes, 2, backward=backward) for backward in (False, True))
    assert forward == (50 + 10 + 2 * 300) * 32 * 2 + 300 * 4
    assert backward - forward == (50 + 300) * 32 * 2
    assert prototype_loss_flops(*sizes) == 2 * 60 * 300 * 32
    assert prototype_loss_flops(*sizes, backward=True) == 2 * 2 * 50 * 300 * 32


def test_a_kernel_that_cannot_run_is_refused():
    why = r"needs CUDA tensors.*dtype float64 \(expected .*width 257 \(expected 256 at most\)"
    with pytest.raises(BackendError, match=why):
        prototype_loss(*make((2, 3, 257, 5), torch.float64), **TEMPS, backend="triton")


class NotLaunched:
    def __getitem__(self, grid):
        return lambda *args, **how: None


def test_a_tenth_of_the_memory_with_kernels(monkeypatch):
    pytest.importorskip("triton", reason="the launchers use it")
    for name in ("rows", "merge", "figures", "bwd"):
        monkeypatch.setattr(module, f"_prototype_{name}", NotLaunched())
    inputs = full_size()
    temp = torch.zeros((), device="meta")
    with torch.no_grad(), LiveMemory([*inputs, temp]) as memory:
        loss, _, _d_student, *logs = module._forward_op._init_fn(*inputs, 0.1, temp, torch.bfloat16, True)
        forward, memory.peak = memory.peak, memory.now
        module._backward_op._init_fn(loss, *inputs, temp, *logs, 0.1, torch.bfloat16)
    assert 0 < forward < memory_of_pairs(inputs) / 10
    assert 0 < memory.peak - inputs[2].nbytes < memory_of_pairs(inputs) / 10


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs a GPU")
@pytest.mark.parametrize("backend_name", ["torch", "triton"])
def test_a_tenth_of_the_memory_on_a_gpu(backend_name):
    inputs, peaks = full_size("cuda"), []
    for function in (by_pairs, lambda *x, **temps: prototype_loss(*x, **temps, backend=backend_name)[0]):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            loss = function(*inputs, **TEMPS)
        torch.autograd.grad(loss, (inputs[0], inputs[2]))
        peaks.append(torch.cuda.max_memory_allocated() - before - inputs[2].nbytes)
        del loss
    assert peaks[1] < peaks[0] / 10
