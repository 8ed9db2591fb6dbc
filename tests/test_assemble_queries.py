"""assemble_queries: mask token plus the position's row, one rounding, and the gradient of the mask token."""

import pytest
import torch
from tolerances import assert_close

from cinema_fast.kernels.assemble_queries import assemble_queries


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
