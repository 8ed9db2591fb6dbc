"""What every kernel must stand, whatever it computes: any number of warps, large tensors, no races."""

import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from machine import ROOT, has_gpu
from marks import in_full, slow_in_interpreter
from operation_cases import call
from tolerances import assert_close

from cinema_fast.kernels import (
    OPERATIONS,
    BackendError,
    TokenPlan,
    assemble_queries,
    augment_images,
    launches,
    masked_mse,
    sparse_attention,
)  # fmt: skip
from cinema_fast.kernels import backend as kernel_backend
from cinema_fast.kernels.sparse_attention import sparse_attention_ref

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# elements in the large tensors pass 2^31 with this many samples of 2^22 elements; without a GPU the same at toy size
SAMPLES, SIDE = (513, 2048) if has_gpu() else (3, 64)


@pytest.fixture(autouse=True)
def about_kernels(request):
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "torch":
        pytest.skip("about kernels: runs in the interpreter and on a GPU")


@pytest.fixture
def warps(request, monkeypatch):
    """Every launch gets another number of warps than its configuration says."""
    interface = kernel_backend.triton.runtime.KernelInterface
    launch = interface.__getitem__
    monkeypatch.setattr(
        interface,
        "__getitem__",
        lambda kernel, grid: lambda *args, **how: launch(kernel, grid)(*args, **how | {"num_warps": request.param}),
    )
    return monkeypatch


@pytest.fixture
def launched(monkeypatch):
    """Names of the Triton functions that are launched."""
    interface, found = kernel_backend.triton.runtime.KernelInterface, set()
    launch = interface.__getitem__
    monkeypatch.setattr(
        interface, "__getitem__", lambda kernel, grid: (found.add(kernel.fn.__name__), launch(kernel, grid))[1]
    )
    return found


def kernels_of(operation: str) -> set[str]:
    """Its Triton functions that no other one calls."""
    home = OPERATIONS[operation].function.__module__.removeprefix("cinema_fast.kernels.").partition(".")[0]
    home = f"cinema_fast.kernels.{home}"
    functions = {
        value.fn for name, module in list(sys.modules.items()) if name == home or name.startswith(f"{home}.")
        for value in vars(module).values()
        if isinstance(value, kernel_backend.triton.runtime.KernelInterface) and value.fn.__module__ == name
    }  # fmt: skip
    return {f.__name__ for f in functions} - {name for f in functions for name in f.__code__.co_names}


@pytest.mark.parametrize("dtype", in_full(DTYPES), ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_twice_the_same_bits_by_every_kernel(backend, device, operation, dtype, launched):
    before = Counter(launches())
    try:
        once, again = (call(operation, device, dtype) for _ in range(2))
    except BackendError as error:  # no C++ or CUDA here
        pytest.skip(str(error))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert (Counter(launches()) - before).keys() == {*OPERATIONS[operation].launches, *OPERATIONS[operation].backward}
    assert launched == kernels_of(operation)


@slow_in_interpreter  # which has no warps
@pytest.mark.parametrize("warps", [2, 8], indirect=True)
@pytest.mark.parametrize("operation", [name for name, op in OPERATIONS.items() if list(op.calls())])
def test_any_number_of_warps(backend, device, operation, warps):
    outs = call(operation, device, torch.float32)
    warps.undo()
    for out, expected in zip(outs, call(operation, device, torch.float32)):
        if out.is_floating_point():
            assert_close(out, expected)
        else:
            assert torch.equal(out, expected)


def test_queries_in_a_large_tensor(backend, device):
    n, width = SIDE, SIDE
    table = torch.randn(n, width, device=device, dtype=torch.float16)
    token = torch.randn(width, device=device, dtype=torch.float16, requires_grad=True)
    masked = torch.arange(n, dtype=torch.int32, device=device).expand(SAMPLES, n)
    out = assemble_queries(token, table, masked, backend=backend)
    assert_close(out[-1], table.double() + token.double())
    upstream = torch.zeros_like(out)
    upstream[-1, -1] = 1
    (grad,) = torch.autograd.grad(out, token, upstream)
    assert torch.equal(grad, torch.ones_like(grad))


def test_loss_in_a_large_tensor(backend, device):
    """Only the last token of the last sample differs from its prediction of zero."""
    patch = (32, 32)
    image = torch.zeros(SAMPLES, 1, SIDE, SIDE, dtype=torch.uint8, device=device)
    image[-1, 0, -32:, -32:] = 3
    n = (SIDE // 32) ** 2
    pred = torch.zeros(SAMPLES, n, 1024, dtype=torch.float16, device=device, requires_grad=True)
    plan = TokenPlan.everything(SAMPLES, n, device)
    plan = plan._replace(masked=plan.keep)
    loss = masked_mse(pred, image, plan, patch, backend=backend)
    assert_close(loss, torch.tensor(9 / (SAMPLES * n), dtype=torch.float64))
    (grad,) = torch.autograd.grad(loss, pred, torch.full_like(loss, float(pred.numel())))
    assert bool((grad[-1, -1] == -6).all()) and not bool(grad[-1, :-1].any()) and not bool(grad[-2].any())


def test_attention_in_a_large_tensor(backend, device):
    n, heads, width = SIDE // 2, *((32, 128) if has_gpu() else (2, 8))
    rows = (SAMPLES + 1) // 2 * 2 * n, heads, width
    q, k, v = (torch.randn(rows, device=device, dtype=torch.float16, requires_grad=True) for _ in range(3))
    cu = torch.arange(len(q) // n + 1, dtype=torch.int32, device=device) * n
    out = sparse_attention(q, k, v, cu, cu, max_q=n, max_k=n, backend=backend)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    last = [x[-n:].detach().double().requires_grad_() for x in (q, k, v)]
    expected = sparse_attention_ref(*last, cu[:2], cu[:2], n, n, width**-0.5)
    assert_close(out[-n:], expected)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, last, upstream[-n:].double())):
        assert_close(grad[-n:], wanted)


@pytest.mark.parametrize("zoomed", [False, True], ids=["stored", "zoomed"])
def test_images_in_a_large_tensor(backend, device, zoomed):
    """Only the last image is not black."""
    frames = torch.zeros(SAMPLES, SIDE, SIDE, dtype=torch.uint8, device=device)
    frames[-1, 1, 1:] = 200
    extent = torch.full((SAMPLES, 2), SIDE, device=device)
    zoom = torch.ones(SAMPLES, device=device) if zoomed else None
    out = augment_images(frames, extent, zoom=zoom, backend=backend)
    assert torch.equal(out[-1], frames[-1] / 200) and not bool(out[:-1].any())


def test_every_launch_has_an_nvtx_range(monkeypatch):
    ranges = []

    @contextmanager
    def record(name):
        ranges.append(name)
        yield
        ranges.append(f"end of {name}")

    monkeypatch.setattr(kernel_backend, "NVTX", True)
    monkeypatch.setattr(torch.cuda.nvtx, "range", record)
    with kernel_backend.launching("an_operation", torch.empty(0)):
        ranges.append("launch")
    assert ranges == ["cinema_fast.an_operation", "launch", "end of cinema_fast.an_operation"]
    assert launches()["an_operation"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu() or not shutil.which("compute-sanitizer"), reason="needs a GPU and compute-sanitizer")
def test_no_races():
    script = ROOT / "tests" / "support" / "operation_cases.py"
    command = ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "1", sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not done.returncode, (done.stdout + done.stderr)[-4000:]
