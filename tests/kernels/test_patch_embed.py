"""patch_embed against patches cut out with Tensor.unfold and multiplied in float64, and their gradients."""

import math

import numpy as np
import pytest
import torch
from tolerances import assert_close

from cinema_fast.kernels import BackendError, launches
from cinema_fast.kernels.patch_embed import patch_embed, patch_embed_bytes, patch_embed_config, patch_embed_dw_config
from cinema_fast.kernels.shapes import VIEW_SHAPES

# grid, patch, channels, width, rows: what each is there for
CASES = {
    "first conv of a sax stem": ((6, 4, 5), (4, 4, 1), 1, 64, 70),  # rows no multiple of a block
    "first conv of a lax stem": ((5, 7), (4, 4), 1, 24, 35),
    "vit, all positions": ((3, 3), (8, 8), 1, 40, 9),
    "one row, odd patch, three channels": ((4, 5), (5, 3), 3, 33, 1),
    "more values than a block": ((2, 3), (9, 16), 2, 130, 4),
    "cine clip": ((2, 2, 1, 3), (2, 3, 2, 1), 2, 16, 5),
    "single pixels": ((4, 4), (1, 1), 1, 5, 7),
}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def make(case, image_dtype=torch.float32, dtype=torch.float32, batch=3, repeat=False):
    """Image, weight, bias, index, patch, and the optional table and intensity."""
    grid, patch, channels, width, rows = CASES[case]
    g, n = torch.Generator().manual_seed(0), math.prod(grid)
    image = 255 * torch.rand(batch, channels, *(a * p for a, p in zip(grid, patch)), generator=g)
    weight, bias, table = (
        torch.randn(*s, generator=g) for s in ((width, math.prod(patch) * channels), (width,), (n, width))
    )
    draw = torch.randint(n, (batch, rows), generator=g)
    index = draw if repeat else torch.stack([torch.randperm(n, generator=g)[:rows] for _ in range(batch)])
    intensity = torch.tensor([60.0, 0.005]) * (0.5 + torch.rand(batch, 2, generator=g))
    given = image.to(image_dtype), weight.to(dtype), bias.to(dtype), index.int(), patch
    return given, {"table": table.to(dtype), "intensity": intensity}


def to(device, given, optional):
    moved = [x.to(device) if isinstance(x, torch.Tensor) else x for x in given]
    return moved, {k: v.to(device) for k, v in optional.items()}


def by_unfold(image, weight, bias, index, patch, table=None, intensity=None):
    """The definition in float64: patches from Tensor.unfold, one after another."""
    image, weight, bias = image.double(), weight.double(), bias.double()
    if intensity is not None:
        offset, scale = (x.view(-1, *[1] * (image.ndim - 1)) for x in intensity.double().unbind(1))
        image = (image - offset) * scale
    for axis, size in enumerate(patch):
        image = image.unfold(2 + axis, size, size)  # (B, C, *grid, *patch)
    values = image.movedim(1, -1).flatten(1, len(patch)).flatten(2)  # (B, N, P)
    rows = torch.stack([v[i.long()] for v, i in zip(values, index)])
    out = rows @ weight.T + bias
    return out if table is None else out + torch.stack([table.double()[i.long()] for i in index])


def gradients(out, inputs, seed=5):
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad(out, inputs, upstream.to(out))


def check(backend, device, given, optional, dtype, image_gradient=False):
    """Forward and the weight's, bias's and perhaps the image's gradients against the definition, in dtype's budget."""
    (image, weight, bias, index, patch), optional = to(device, given, optional)
    leaves = [weight, bias, image] if image_gradient else [weight, bias]
    for x in leaves:
        x.requires_grad_()
    before = [x.detach().clone() for x in (image, weight, bias, index, *optional.values())]
    out = patch_embed(image, weight, bias, index, patch, **optional, backend=backend)
    expected = by_unfold(image, weight, bias, index, patch, **optional)
    assert out.dtype == dtype
    assert_close(out, expected, name="out")
    for name, x, grad, want in zip(
        ("weight", "bias", "image"), leaves, gradients(out, leaves), gradients(expected, leaves)
    ):
        assert grad.dtype == x.dtype, name
        assert_close(grad, want, dtype, name=f"gradient of {name}")
    assert all(map(torch.equal, before, (image, weight, bias, index, *optional.values()))), "an input was written to"


@pytest.mark.parametrize("image_dtype", [torch.uint8, *FLOATS], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(backend, device, case, image_dtype):
    given, optional = make(case, image_dtype)
    check(backend, device, given, optional, torch.float32, image_gradient=image_dtype == torch.float32)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_parameters_of_any_dtype_and_no_table_or_intensity(backend, device, dtype):
    given, _ = make("first conv of a lax stem", dtype=dtype)
    given = given[0] / 255, *given[1:]
    check(backend, device, given, {}, dtype)


@pytest.mark.parametrize("case", ["first conv of a sax stem", "more values than a block"])
def test_autocast_computes_in_bf16_and_gives_float32_gradients(backend, device, case):
    given, optional = make(case, torch.uint8)
    with torch.autocast(device, dtype=torch.bfloat16):
        check(backend, device, given, optional, torch.bfloat16)


def test_strides_of_the_image_do_not_matter(backend, device):
    (image, *given), optional = to(device, *make("one row, odd patch, three channels"))
    expected = patch_embed(image, *given, **optional, backend=backend)
    for strided in (
        image.contiguous(memory_format=torch.channels_last),
        image.mT.contiguous().mT,
        torch.cat([image, image], dim=3)[..., : image.shape[3]],
        torch.stack([image, image], dim=-1)[..., 1],
    ):
        assert torch.equal(patch_embed(strided, *given, **optional, backend=backend), expected)


def test_expanded_image_and_upstream(backend, device):
    given, _ = make("first conv of a lax stem")
    image = given[0][:1].expand(3, -1, -1, -1)
    weight = given[1].requires_grad_()
    out = patch_embed(image.to(device), weight.to(device), *to(device, given[2:], {})[0], backend=backend)
    expected = by_unfold(image, weight, *given[2:])
    assert_close(out.cpu(), expected)
    assert_close(*(torch.autograd.grad(x.sum(), weight)[0] for x in (out, expected)), torch.float32)


def test_a_token_asked_for_twice_counts_twice(backend, device):
    given, optional = make("cine clip", repeat=True)
    check(backend, device, given, optional, torch.float32, image_gradient=True)


def test_a_sample_beyond_2_31_elements(backend, device):
    (image, *given), optional = to(device, *make("first conv of a lax stem", torch.uint8, batch=2))
    far = torch.from_numpy(np.zeros(2**31 + image[0].numel(), dtype=np.uint8))  # pages that nobody touches
    far = far.to(device).as_strided(image.shape, (2**31, *image.stride()[1:])).copy_(image)
    near = patch_embed(image, *given, **optional, backend=backend)
    assert torch.equal(patch_embed(far, *given, **optional, backend=backend), near)


def test_no_row_gives_an_empty_result_and_no_gradient():
    given, _ = make("vit, all positions")
    weight = given[1].requires_grad_()
    out = patch_embed(given[0], weight, given[2], given[3][:, :0], given[4])
    assert out.shape == (3, 0, 40)
    assert not torch.autograd.grad(out.sum(), weight)[0].any()


@pytest.mark.parametrize("case", ["first conv of a sax stem", "more values than a block"])
def test_same_bits_twice(backend, device, case):
    given, optional = to(device, *make(case, torch.uint8))
    given[1].requires_grad_(), given[2].requires_grad_()
    results = []
    for _ in range(2):
        out = patch_embed(*given, **optional, backend=backend)
        results.append([out.detach(), *gradients(out, given[1:3])])
    assert all(torch.equal(a, b) for a, b in zip(*results))
    assert backend != "triton" or {"patch_embed", "patch_embed_dw"} <= launches().keys()


def test_pixels_elsewhere_are_not_read(backend, device):
    given, optional = to(device, *make("first conv of a lax stem"))
    image, index, patch = given[0], given[3], given[4]
    seen = torch.zeros(3, 35, dtype=torch.bool, device=device).scatter(1, index[:, :9].long(), True).view(3, 1, 5, 7)
    for axis in (2, 3):
        seen = seen.repeat_interleave(patch[axis - 2], axis)
    given[3] = index[:, :9]
    clean = patch_embed(*given, **optional, backend=backend)
    given[0] = torch.where(seen, image, torch.nan)
    assert torch.equal(patch_embed(*given, **optional, backend=backend), clean)


def test_one_graph_without_breaks(backend, device):
    given, optional = to(device, *make("cine clip"))
    leaves = [x.requires_grad_() for x in given[:3]]
    if backend == "triton":
        args = *given[:4], optional["table"], optional["intensity"], list(given[4]), torch.float32
        torch.library.opcheck(torch.ops.cinema_fast.patch_embed, args)
    torch.compiler.reset()
    compiled = torch.compile(patch_embed, fullgraph=True, backend="aot_eager")
    results = []
    for function in (patch_embed, compiled):
        out = function(*given, **optional, backend=backend)
        results.append([out, *gradients(out, leaves)])
    for actual, expected in zip(*reversed(results)):
        assert_close(actual, expected)


def test_gradcheck():
    (image, weight, bias, index, patch), optional = make(
        "cine clip", torch.float64, torch.float64, batch=2, repeat=True
    )
    leaves = [x.requires_grad_() for x in (image, weight, bias, optional["table"])]

    def embed(image, weight, bias, table):
        return patch_embed(image, weight, bias, index, patch, table=table, intensity=optional["intensity"])

    assert embed(*leaves).dtype == torch.float64
    assert torch.autograd.gradcheck(embed, leaves, fast_mode=True)


def test_bytes_count_the_sectors_that_hold_wanted_pixels():
    # 16 slices of a byte are innermost: one slice touches every sector of 32 bytes, its neighbour no other
    image, weight = torch.zeros(1, 1, 8, 8, 16, dtype=torch.uint8), torch.zeros(4, 16, dtype=torch.bfloat16)
    slice0 = torch.arange(0, 64, 16).unsqueeze(0)
    for index in (slice0, torch.cat([slice0, slice0 + 1], dim=1)):
        rows = index.numel()
        expected = 8 * 8 * 16 + rows * 8 + 4 * 16 * 2 + rows * 4 * 2
        assert patch_embed_bytes(image, weight, index, (4, 4, 1), 2) == expected


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", VIEW_SHAPES.values(), ids=VIEW_SHAPES)
def test_configurations_suit_a_matrix_product_and_bound_the_partial_sums(shape, dtype):
    rows, values = shape.batch * shape.keep * math.prod(shape.block), math.prod(shape.kernel) * shape.channels
    backward = patch_embed_dw_config(rows, values, shape.width, dtype)
    for config in (patch_embed_config(values, shape.width, dtype), backward):
        assert all(n & (n - 1) == 0 for key, n in config.items() if key.startswith("BLOCK"))
        assert min(config["BLOCK_R"], config["BLOCK_E"], config["BLOCK_P"]) >= 16
    splits = math.ceil(rows / (backward["STEPS"] * backward["BLOCK_R"]))
    assert splits * shape.width * (values + 1) * 4 <= 16 * 2**20  # bytes


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image": torch.zeros(3, 20)}, r"image \(B, C, 2 to 4 axes\)"),
        ({"image": torch.zeros(3, 1, 21, 28)}, "not a positive multiple of the patch"),
        ({"index": torch.zeros(2, 4, dtype=torch.int32)}, r"integer index \(B, R\), got .* \(2, 4\)"),
        ({"index": torch.zeros(3, 4)}, "integer index"),
        ({"weight": torch.zeros(24, 15)}, r"weight \(E, 16\) .* got \(24, 15\)"),
        ({"bias": torch.zeros(23)}, r"bias \(E,\) .* \(23,\)"),
        ({"table": torch.zeros(34, 24)}, r"table \(35, 24\), got \(34, 24\)"),
        ({"intensity": torch.zeros(3)}, r"intensity \(3, 2\), got \(3,\)"),
        ({"weight": torch.zeros(24, 16, device="meta")}, "image is on cpu, weight on meta"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_input_is_refused(change, match):
    given, optional = make("first conv of a lax stem")
    arguments = dict(zip(("image", "weight", "bias", "index", "patch"), given)) | optional | change
    with pytest.raises(ValueError, match=match):
        patch_embed(**arguments)


def test_a_kernel_that_cannot_run_says_why():
    (image, *given), optional = make("first conv of a lax stem", torch.float64, torch.float64)
    optional["table"].requires_grad_()
    with pytest.raises(BackendError, match=r"needs CUDA.*float64.*no gradient for the table.*got torch.float64"):
        patch_embed(image, *given, **optional, backend="triton")
