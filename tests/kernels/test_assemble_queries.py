"""assemble_queries: mask token plus the position's row, one rounding, and the gradient of the mask token."""

import pytest
import torch
from tolerances import assert_close

from cinema_fast.kernels import BackendError, launches
from cinema_fast.kernels.assemble_queries import (
    assemble_queries,
    assemble_queries_bwd_config,
    assemble_queries_bytes,
    assemble_queries_config,
)


def inputs(dtype, batch=3, m=5, n=9, width=6, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    token, table = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((width,), (n, width)))
    masked = torch.stack([torch.randperm(n, generator=generator)[:m].sort().values for _ in range(batch)])
    return token.to(device), table.to(device), masked.int().to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("m", "width"), [(1, 6), (5, 1), (9, 130)])
def test_is_token_plus_row(backend, device, dtype, m, width):
    token, table, masked = inputs(dtype, m=m, width=width, device=device)
    out = assemble_queries(token, table, masked, backend=backend)
    assert out.shape == (3, m, width) and out.dtype == dtype
    expected = torch.stack([torch.stack([token + table[position] for position in row]) for row in masked.tolist()])
    if dtype == torch.bfloat16:  # Triton's interpreter cuts bfloat16 off where a GPU rounds
        assert_close(out, expected)
    else:
        assert torch.equal(out, expected)


@pytest.mark.parametrize("width", [6, 130])
def test_gradient_of_the_mask_token_is_the_sum_of_upstream(backend, device, width):
    token, table, masked = inputs(torch.float32, width=width, device=device)
    upstream = torch.randn(3, 5, width, generator=torch.Generator().manual_seed(1)).to(device)
    assemble_queries(token.requires_grad_(), table, masked, backend=backend).backward(upstream)
    assert_close(token.grad, upstream.double().sum((0, 1)))


def test_upstream_may_be_a_slice_of_all_views(backend, device):
    token, table, masked = inputs(torch.float32, batch=4, m=7, width=20, device=device)
    everything = torch.randn(4, 12, 20, generator=torch.Generator().manual_seed(1)).to(device)
    for upstream in (
        everything[:, 2:9],
        everything[:1, :7].expand(4, 7, 20),
        everything.mT[:, :7, :1].expand(4, 7, 20),
    ):
        out = assemble_queries(token.requires_grad_(), table, masked, backend=backend)
        (grad,) = torch.autograd.grad(out, token, upstream)
        assert_close(grad, upstream.double().sum((0, 1)))


def test_a_float32_token_and_a_half_precision_table(backend, device):
    token, table, masked = inputs(torch.float32, device=device)
    half, before = table.half(), masked.clone()
    out = assemble_queries(token.requires_grad_(), half, masked, backend=backend)
    assert out.dtype == torch.float16
    assert torch.equal(out, (token + half[masked.long()].float()).half())
    upstream = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1)).to(out)
    (grad,) = torch.autograd.grad(out, token, upstream)
    assert grad.dtype == torch.float32
    assert_close(grad, upstream.double().sum((0, 1)))
    assert torch.equal(masked, before)


def test_same_bits_twice_and_one_graph_without_breaks(backend, device):
    token, table, masked = inputs(torch.float32, m=9, width=33, device=device)
    token.requires_grad_()
    upstream = torch.randn(3, 9, 33, generator=torch.Generator().manual_seed(1)).to(device)
    if backend == "triton":
        torch.library.opcheck(torch.ops.cinema_fast.assemble_queries, (token, table, masked))
    torch.compiler.reset()
    compiled = torch.compile(assemble_queries, fullgraph=True, backend="aot_eager")
    results = []
    for function in (assemble_queries, assemble_queries, compiled):
        out = function(token, table, masked, backend=backend)
        results.append((out.detach(), *torch.autograd.grad(out, token, upstream)))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results))
    assert backend != "triton" or {"assemble_queries", "assemble_queries_bwd"} <= launches().keys()


def test_nothing_to_decode():
    token, table, masked = inputs(torch.float32, m=0)
    out = assemble_queries(token.requires_grad_(), table, masked)
    assert out.shape == (3, 0, 6)
    out.sum().backward()
    assert not token.grad.any()


def test_gradcheck_of_token_and_table():
    token, table, masked = inputs(torch.float64)
    leaves = token.requires_grad_(), table.requires_grad_()
    torch.autograd.gradcheck(lambda *both: assemble_queries(*both, masked), leaves)


@pytest.mark.parametrize(
    ("token", "table", "masked"),
    [((1, 6), (9, 6), (3, 5)), ((5,), (9, 6), (3, 5)), ((6,), (1, 9, 6), (3, 5)), ((6,), (9, 6), (5,))],
    ids=["token's rank", "width", "table's rank", "ids' rank"],
)
def test_wrong_shapes_are_refused(token, table, masked):
    with pytest.raises(ValueError, match=r"mask_token \(D,\), table \(N, D\), masked \(B, M\); got"):
        assemble_queries(torch.zeros(token), torch.zeros(table), torch.zeros(masked, dtype=torch.int32))


def test_ids_that_are_not_integers_and_kernels_that_cannot_run_are_refused():
    token, table, masked = inputs(torch.float64)
    with pytest.raises(ValueError, match=r"integer ids, and all tensors on one device, got .* torch.float32 on cpu"):
        assemble_queries(token, table, masked.float())
    with pytest.raises(BackendError, match=r"needs CUDA tensors.*no gradient for the table.*got torch.float64"):
        assemble_queries(token, table.requires_grad_(), masked, backend="triton")


def test_costs_and_configurations():
    assert assemble_queries_bytes(10, 512, 4) == 10 * (512 * 4 + 4)
    for width in (1, 6, 512, 1280):
        for config in (assemble_queries_config(width), assemble_queries_bwd_config(27648, width)):
            assert all(n & (n - 1) == 0 for n in config.values())
    assert assemble_queries_bwd_config(1, 6)["STEPS"] == 1
