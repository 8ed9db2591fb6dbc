"""masked_mse against the definition summed pixel by pixel in float64."""

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from tolerances import assert_close

from cinema_fast.kernels import BackendError, TokenPlan, launches, sample_mask
from cinema_fast.kernels.masked_mse import masked_mse, masked_mse_bytes, masked_mse_config

# grid, patch, channels
SHAPES = {
    "lax": ((3, 4), (4, 4), 1),
    "odd, two channels": ((3, 2), (3, 5), 2),
    "sax": ((2, 3, 4), (4, 4, 1), 1),
    "deep": ((2, 1, 3), (2, 3, 2), 3),
    "cine": ((2, 2, 1, 3), (2, 2, 1, 2), 1),
    "one token": ((1, 1), (4, 4), 1),
    "innermost slices, values and rows beyond a block": ((2, 3, 4), (10, 7, 1), 1),
    "a long patch": ((1, 2, 1), (3, 19, 20), 1),
}


def make(shape, dtype=torch.float32, batch=2, decode=None, image_dtype=None, device="cpu"):
    grid, patch, channels = shape
    n, generator = math.prod(grid), torch.Generator().manual_seed(0)
    plan = sample_mask(batch=batch, n=n, keep=n // 4, seed=1, decode=decode, device=device)
    size = [g * p for g, p in zip(grid, patch)]
    image = torch.rand(batch, channels, *size, generator=generator, dtype=torch.float64)
    image = (image * 255).to(torch.uint8) if image_dtype == torch.uint8 else image.to(image_dtype or dtype)
    values = math.prod(patch) * channels
    pred = torch.randn(batch, plan.masked.shape[1], values, generator=generator, dtype=torch.float64).to(dtype)
    return pred.to(device), image.to(device), plan, patch


def loss_by_loops(pred, image, plan, patch, norm=False, intensity=None):
    """Loss and its gradient in Python floats."""
    grid = [s // p for s, p in zip(image.shape[2:], patch)]
    pred, image = pred.double().cpu().numpy(), image.double().cpu().numpy()
    total, grad = 0.0, np.zeros(pred.shape)
    for b, m in itertools.product(range(pred.shape[0]), range(pred.shape[1])):
        corner = [t * p for t, p in zip(np.unravel_index(int(plan.masked[b, m]), grid), patch)]
        target = [
            float(image[(b, c, *(o + i for o, i in zip(corner, inside)))])
            for inside in itertools.product(*map(range, patch))
            for c in range(image.shape[1])
        ]
        if intensity is not None:
            offset, scale = (float(x) for x in intensity[b])
            target = [(t - offset) * scale for t in target]
        if norm:
            mean, deviation = statistics.fmean(target), statistics.stdev(target)
            target = [(t - mean) / (deviation + 1e-6) for t in target]
        for i, t in enumerate(target):
            total += (pred[b, m, i] - t) ** 2 / pred.size
            grad[b, m, i] = 2 * (pred[b, m, i] - t) / pred.size
    return torch.tensor(total, dtype=torch.float64), torch.from_numpy(grad)


def check(shape, dtype, norm, device, backend):
    pred, image, plan, patch = make(shape, dtype, image_dtype=torch.promote_types(dtype, torch.float32), device=device)
    before = image.clone()
    loss = masked_mse(pred.requires_grad_(), image, plan, patch, norm=norm, backend=backend)
    assert loss.shape == () and loss.dtype == torch.promote_types(dtype, torch.float32)
    upstream = 1.75
    (loss * upstream).backward()
    expected, grad = loss_by_loops(pred.detach(), image, plan, patch, norm)
    assert_close(loss, expected)
    assert pred.grad.dtype == dtype
    assert_close(pred.grad, grad * upstream)
    assert torch.equal(image, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loss_and_gradient(backend, device, shape, norm, dtype):
    check(shape, dtype, norm, device, backend)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loss_and_gradient_in_float64(shape, norm):
    check(shape, torch.float64, norm, "cpu", "auto")


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("image_dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_intensity_is_offset_then_scale(backend, device, image_dtype, norm):
    pred, image, plan, patch = make(SHAPES["odd, two channels"], image_dtype=image_dtype, device=device)
    intensity = torch.tensor([[3.0, 1 / 200], [0.25, 1 / 90]], device=device)
    expected, _ = loss_by_loops(pred, image, plan, patch, norm, intensity)
    assert_close(masked_mse(pred, image, plan, patch, norm=norm, intensity=intensity, backend=backend), expected)


def test_only_decoded_tokens_count(backend, device):
    pred, image, plan, patch = make(SHAPES["sax"], decode=5, device=device)
    assert pred.shape[1] == 5
    expected, _ = loss_by_loops(pred, image, plan, patch)
    loss = masked_mse(pred, image, plan, patch, backend=backend)
    assert_close(loss, expected)
    decoded = torch.zeros(2, 24, dtype=torch.bool, device=device).scatter(1, plan.masked.long(), True)
    pixels = decoded.view(2, 1, 2, 3, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    elsewhere = torch.where(pixels, image, torch.nan)
    assert torch.equal(masked_mse(pred, elsewhere, plan, patch, backend=backend), loss)


def test_strides_of_image_and_prediction_do_not_matter(backend, device):
    pred, image, plan, patch = make(SHAPES["odd, two channels"], device=device)
    loss = masked_mse(pred, image, plan, patch, backend=backend)
    last = image.contiguous(memory_format=torch.channels_last)
    across = image.transpose(2, 3).contiguous().transpose(2, 3)
    between = torch.stack([pred, pred], dim=1)[:, 1]
    for p, x in ((pred, last), (pred, across), (between, image)):
        assert_close(masked_mse(p, x, plan, patch, backend=backend), loss)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_same_bits_twice(backend, device, norm):
    pred, image, plan, patch = make(SHAPES["sax"], image_dtype=torch.uint8, device=device)
    intensity = torch.tensor([[3.0, 0.01], [8.0, 0.02]], device=device)
    results = []
    for _ in range(2):
        loss = masked_mse(pred.requires_grad_(), image, plan, patch, norm=norm, intensity=intensity, backend=backend)
        results.append((loss.detach(), *torch.autograd.grad(loss, pred)))
    assert all(torch.equal(a, b) for a, b in zip(*results))
    assert backend != "triton" or {"masked_mse", "masked_mse_bwd"} <= launches().keys()


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_one_graph_without_breaks(backend, device, norm):
    pred, image, plan, patch = make(SHAPES["odd, two channels"], torch.float16, device=device)
    pred.requires_grad_()
    if backend == "triton":
        args = pred, image, plan.masked, None, list(patch), norm
        torch.library.opcheck(torch.ops.cinema_fast.masked_mse, args)
    torch.compiler.reset()
    results = []
    for function in (masked_mse, torch.compile(masked_mse, fullgraph=True, backend="aot_eager")):
        loss = function(pred, image, plan, patch, norm=norm, backend=backend)
        results.append((loss, *torch.autograd.grad(loss, pred)))
    for expected, actual in zip(*results):
        assert_close(actual, expected)


def test_exact_prediction_has_no_loss():
    pred, image, plan, patch = make(SHAPES["lax"])
    image = torch.full_like(image, 0.5)
    assert float(masked_mse(torch.full_like(pred, 0.5), image, plan, patch)) == 0.0


def test_norm_forgets_the_scale_and_offset_of_an_image():
    pred, image, plan, patch = make(SHAPES["deep"], torch.float64)
    loss = masked_mse(pred, image, plan, patch, norm=True)
    # not to the last digit: 1e-6 is added to the deviation, here about 0.3
    torch.testing.assert_close(masked_mse(pred, 3 * image - 7, plan, patch, norm=True), loss, rtol=1e-5, atol=0)


def test_norm_of_a_constant_patch_is_zero(backend, device):
    pred, image, plan, patch = make(SHAPES["lax"], device=device)
    loss = masked_mse(pred, torch.full_like(image, 0.5), plan, patch, norm=True, backend=backend)
    assert_close(loss, pred.double().square().mean())


def test_image_gets_no_gradient():
    pred, image, plan, patch = make(SHAPES["lax"])
    masked_mse(pred.requires_grad_(), image.requires_grad_(), plan, patch).backward()
    assert image.grad is None


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_gradcheck(norm):
    pred, image, plan, patch = make(((2, 2), (2, 1), 1), torch.float64)
    torch.autograd.gradcheck(lambda p: masked_mse(p, image, plan, patch, norm=norm), pred.requires_grad_())


def test_wrong_shapes_are_refused():
    pred, image, plan, patch = make(SHAPES["lax"])
    nothing = TokenPlan.everything(2, 12, torch.device("cpu"))
    for bad, match in (
        ((pred[:1], image, plan, patch), r"\(B, M\) = \(2, 9\)"),
        ((pred[:, :4], image, plan, patch), r"got \(2, 4, 16\)"),
        ((pred[..., :9], image, plan, patch), "holds 16 values, pred has 9"),
        ((pred[0], image, plan, patch), r"got \(9, 16\)"),
        ((pred[:, :0], image, nothing, patch), "M > 0"),
        ((pred, image[..., :15], plan, patch), "not a positive multiple"),
    ):
        with pytest.raises(ValueError, match=match):
            masked_mse(*bad)


@pytest.mark.parametrize("shape", [(2,), (1, 2), (2, 1), (2, 3)], ids=str)
def test_intensity_of_another_shape_is_refused(shape):
    pred, image, plan, patch = make(SHAPES["lax"])
    with pytest.raises(ValueError, match="intensity"):
        masked_mse(pred, image, plan, patch, intensity=torch.ones(shape))


def test_wrong_devices_and_a_kernel_that_cannot_run_are_refused():
    pred, image, plan, patch = make(SHAPES["lax"], torch.float64)
    with pytest.raises(ValueError, match="image is on cpu, pred on meta"):
        masked_mse(pred.to("meta"), image, plan, patch)
    with pytest.raises(BackendError, match=r"needs CUDA tensors.*reads uint8.*float64; takes float16.*float64"):
        masked_mse(pred, image, plan, patch, backend="triton")


def test_bytes_are_those_of_predictions_pixels_and_ids():
    pred, image, plan, patch = make(((3, 4), (4, 8), 1), torch.bfloat16, decode=4, image_dtype=torch.float32)
    # each of 8 tokens: 4 rows of 8 pixels, a sector each; an id and a row's sum
    assert masked_mse_bytes(pred, image, plan.masked, patch) == 8 * (4 * 8 * 2 + 4 * 32 + 4 + 4)


@pytest.mark.parametrize("across", [True, False])
def test_configurations_are_powers_of_two(across):
    for values in (1, 16, 35, 256, 1024, 5000):
        config = masked_mse_config(values, across)
        assert all(n & (n - 1) == 0 for n in config.values())
        assert config["BLOCK_P"] >= min(values, 64) and config["BLOCK_M"] * config["BLOCK_P"] <= 2048
