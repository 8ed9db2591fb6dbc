"""One small call of every operation on Triton, forward and backward, through all of its kernels.

    compute-sanitizer --tool racecheck python tests/operation_cases.py
"""

import torch
from augment_cases import everything, images
from torch import Tensor

from cinema_fast.kernels import (
    assemble_queries,
    augment_images,
    masked_mse,
    patch_embed,
    sample_mask,
    sparse_attention,
    sparse_depthwise_conv,
)

BATCH, GRID, PATCH, WIDTH = 2, (5, 6, 3), (4, 4, 1), 48


def _randn(seed: int, *shape: int, device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def _plan(device: str, **how):
    return sample_mask(batch=BATCH, n=90, keep=23, seed=3, device=device, backend="triton", **how)


def _image(device: str) -> Tensor:
    size = [g * p for g, p in zip(GRID, PATCH)]
    pixels = torch.randint(0, 256, (BATCH, 1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return pixels.to(device)


def _with_gradients(out: Tensor, *leaves: Tensor) -> list[Tensor]:
    upstream = _randn(9, *out.shape, device=out.device, dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def draw_masks(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Uniform, and weighted with a partial decode."""
    scores = _randn(0, BATCH, 90, device=device, dtype=dtype).exp()
    return [*_plan(device), *_plan(device, scores=scores, decode=20)]


def embed(device: str, dtype: torch.dtype) -> list[Tensor]:
    weight = _randn(0, WIDTH, 16, device=device, dtype=dtype).requires_grad_()
    bias = _randn(1, WIDTH, device=device, dtype=dtype).requires_grad_()
    intensity = torch.tensor([[3.0, 1 / 200]] * BATCH, device=device)
    out = patch_embed(_image(device), weight, bias, _plan(device).keep, PATCH, intensity=intensity, backend="triton")
    return _with_gradients(out, weight, bias)


def attend(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Sequences longer than a tile, and not a multiple of one."""
    q = _randn(0, BATCH * 145, 3, 32, device=device, dtype=dtype).requires_grad_()
    k, v = (_randn(s, BATCH * 130, 3, 32, device=device, dtype=dtype).requires_grad_() for s in (1, 2))
    cu_q, cu_k = (torch.arange(BATCH + 1, dtype=torch.int32, device=device) * n for n in (145, 130))
    return _with_gradients(sparse_attention(q, k, v, cu_q, cu_k, max_q=145, max_k=130, backend="triton"), q, k, v)


def convolve(device: str, dtype: torch.dtype) -> list[Tensor]:
    grid, keep, channels = (3, 3, 2), 5, 20
    plan = sample_mask(batch=BATCH, n=18, keep=keep, seed=3, device=device, backend="triton")
    x = _randn(0, BATCH, keep, 2, 2, 1, channels, device=device, dtype=dtype).requires_grad_()
    weight = _randn(1, channels, 5, 5, 5, device=device, dtype=dtype).requires_grad_()
    bias = _randn(2, channels, device=device, dtype=dtype).requires_grad_()
    return _with_gradients(sparse_depthwise_conv(x, weight, bias, plan, grid, backend="triton"), x, weight, bias)


def ask(device: str, dtype: torch.dtype) -> list[Tensor]:
    token = _randn(0, WIDTH, device=device, dtype=dtype).requires_grad_()
    table = _randn(1, 90, WIDTH, device=device, dtype=dtype)
    return _with_gradients(assemble_queries(token, table, _plan(device).masked, backend="triton"), token)


def compare(device: str, dtype: torch.dtype) -> list[Tensor]:
    pred = _randn(0, BATCH, 67, 16, device=device, dtype=dtype).requires_grad_()
    loss = masked_mse(pred, _image(device), _plan(device), PATCH, norm=True, backend="triton")
    return _with_gradients(loss, pred)


def augment(device: str, dtype: torch.dtype) -> list[Tensor]:
    """A volume in several tiles with every parameter, and a plane zoomed bicubically; uint8 whatever the dtype is."""
    outs = []
    for size, names in (((17, 9, 5), None), ((30, 25), ("zoom",))):
        frames, extent = images([size, tuple(n - 1 for n in size)], size)
        how = {name: value.to(device) for name, value in everything(2).items() if names is None or name in names}
        outs.append(augment_images(frames.to(device), extent.to(device), **how, backend="triton"))
    return outs


OPERATIONS = {
    "sample_mask": draw_masks,
    "patch_embed": embed,
    "sparse_depthwise_conv": convolve,
    "sparse_attention": attend,
    "assemble_queries": ask,
    "masked_mse": compare,
    "augment_images": augment,
}

if __name__ == "__main__":
    for name, run in OPERATIONS.items():
        for dtype in (torch.bfloat16, torch.float32):
            run("cuda", dtype)
        torch.cuda.synchronize()
        print(name)
