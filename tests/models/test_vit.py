"""The ViT against the public DINO code's results, and against itself: packed crops, drop path, recomputation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from dino_cases import golden_dino, small_vit
from golden_files import all_launched, part, relative
from tolerances import assert_close
from torch import nn

import cinema_fast as cf
from cinema_fast.kernels.packed_sequences import Runs
from cinema_fast.models.layers import Block

IN_FEATURES = {"patch_embed", "sparse_attention"}


@pytest.fixture
def golden(shared, device):
    _, config, tensors = golden_dino(shared, device)
    vit = cf.ViT(config.vit).to(device)
    cf.load_dino_weights(vit, part(tensors, "student."))
    return vit, tensors


def test_features_match_the_public_code(golden, backend):
    vit, tensors = golden
    image, layers = tensors["image"], part(tensors, "layer.")
    with all_launched(backend, IN_FEATURES), torch.no_grad():
        out, last = vit(image), vit.intermediate(image, n=len(layers))
        attention, other = vit.last_attention(image), vit.intermediate(tensors["other_image"])
    assert relative(out["cls"], tensors["cls"]) < 1e-5
    assert relative(out["patches"], layers[str(len(vit.blocks) - 1)][:, 1:]) < 1e-5
    for tokens, (_, expected) in zip(last, sorted(layers.items()), strict=True):
        assert relative(tokens, expected) < 1e-5
    assert relative(attention, tensors["last_attention"]) < 1e-5
    assert relative(other[0], tensors["other_tokens"]) < 1e-5  # other grid, not square


def images(*sizes, batch=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(batch + n, 1, *size, generator=generator, dtype=dtype) for n, size in enumerate(sizes)]


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def test_class_tokens_are_those_of_separate_passes(backend, device):
    """Crops of two sizes as one packed sequence, whose last block is computed for class tokens alone."""
    vit, groups = small_vit().to(device), [x.to(device) for x in images((16, 16), (8, 12))]
    exact = copy.deepcopy(vit).double()
    with all_launched(backend, IN_FEATURES):
        packed = vit.class_tokens(groups)
        found = gradients(vit, packed.square().sum())
    apart = torch.cat([exact(x.double())["cls"] for x in groups])
    assert_close(packed, apart)
    expected = gradients(exact, apart.square().sum())
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert_close(found[name], grad, floor=0.1, name=name)


def block_by_modules(block, x):
    """PyTorch's own attention with the weights of a block; x (B, N, D)."""
    attention = nn.MultiheadAttention(x.shape[-1], block.attn.n_heads, batch_first=True, dtype=x.dtype)
    attention.in_proj_weight, attention.in_proj_bias = block.attn.qkv.weight, block.attn.qkv.bias
    attention.out_proj = block.attn.proj
    h = block.norm1(x)
    x = x + attention(h, h, h, need_weights=False)[0]
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


@pytest.mark.parametrize("first", [False, True], ids=["all rows", "first rows"])
def test_a_block_of_packed_sequences(first):
    """Each sequence by itself through PyTorch's modules, in value and gradient."""
    block, runs = small_vit().double().blocks[0], Runs(((2, 5), (1, 3), (3, 1)))
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    apart = [block_by_modules(block, part.unflatten(0, shape)) for part, shape in zip(x.split(runs.rows), runs.of)]
    rows = [y[:, 0] if first else y.flatten(0, 1) for y in apart]
    expected = torch.cat(rows)
    found = block.first_rows(x, runs) if first else block(x, runs=runs)
    assert_close(found, expected)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaves = {"x": x, **dict(block.named_parameters())}
    for (name, leaf), want in zip(leaves.items(), torch.autograd.grad(expected, leaves.values(), upstream)):
        (grad,) = torch.autograd.grad(found, leaf, upstream, retain_graph=True)
        # keys' biases have no gradient but rounding
        assert_close(grad, want, floor=1e-2, name=name)


def test_drop_path_skips_whole_sequences_and_keeps_the_mean():
    rate, runs = 0.4, Runs(((3000, 2), (1000, 3)))
    block = Block(8, 1, rate).train()
    with torch.no_grad():  # the attention adds 1 to every row, the MLP 10
        for layer, value in ((block.attn.proj, 1.0), (block.mlp.fc2, 10.0)):
            layer.weight.zero_()
            layer.bias.fill_(value)
    torch.manual_seed(0)
    x = torch.zeros(sum(runs.rows), 8)
    y = block(x, runs=runs)
    first = y[runs.offsets(y.device)[:-1].long()]
    assert torch.equal(y, runs.spread(first[:, :1]).expand_as(y))
    values, counts = first[:, 0].unique(return_counts=True)
    assert_close(values, torch.tensor([0, 1, 10, 11], dtype=torch.float64) / (1 - rate))
    shares = [rate**2, rate * (1 - rate), rate * (1 - rate), (1 - rate) ** 2]
    for count, share in zip(counts.tolist(), shares):
        assert abs(count - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5
    torch.manual_seed(0)
    assert torch.equal(block.first_rows(x, runs), first)
    assert torch.equal(block.eval()(x, runs=runs), torch.full_like(x, 11))


def test_drop_path_rises_over_the_blocks():
    rates = [block.drop_path for block in small_vit(depth=4, drop_path=0.3).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputation_changes_no_gradient(how):
    vit, groups = small_vit(drop_path=0.5).train(), images((16, 16), (8, 8))
    results = []
    for kind in ("none", how):
        vit.recompute(kind)
        torch.manual_seed(3)
        results.append(gradients(vit, vit.class_tokens(groups).square().sum()))
    assert all(torch.equal(grad, results[1][name]) for name, grad in results[0].items())


def test_autocast_is_close():
    vit, (x,) = small_vit(), images((16, 16))
    with torch.no_grad():
        expected = copy.deepcopy(vit).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            found = vit(x)
    for name, value in expected.items():
        assert_close(found[name], value, torch.bfloat16, name=name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vit: vit(torch.zeros(1, 1, 16, 18)), r"ViT: image size \(16, 18\) .* multiple of the patch \(4, 4\)"),
        (lambda vit: vit.class_tokens([torch.zeros(1, 1, 16, 0)]), r"ViT: image size \(16, 0\)"),
        (lambda vit: vit(torch.zeros(1, 3, 16, 16)), r"ViT: expected images \(B, 1, X, Y\), got \(1, 3, 16, 16\)"),
        (lambda vit: vit(torch.zeros(0, 1, 16, 16)), r"expected images .* got \(0, 1, 16, 16\)"),
        (lambda vit: vit({"sax": torch.zeros(1, 1, 16, 16)}), "expected images in one tensor, got dict"),
        (lambda vit: vit(torch.zeros(1, 1, 16, 16).byte()), "expected floating-point images, got uint8"),
        (lambda vit: cf.ViT(cf.preset("cmrfm-demo")), "ViT: expected a ViTConfig.* got DINOConfig"),
        (lambda vit: cf.DINO(vit.config), "DINO: expected a DINOConfig.* got ViTConfig"),
        (lambda vit: cf.CineMA(vit.config), "CineMA: expected a CineMAConfig.* got ViTConfig"),
        (lambda vit: vit.last_attention(torch.zeros(1, 16, 16)), r"expected images .* got \(1, 16, 16\)"),
        (lambda vit: vit.intermediate(torch.zeros(1, 1, 16, 16), n=3), r"n = 3, expected 1 to 2"),
        (lambda vit: vit.intermediate(torch.zeros(1, 1, 16, 16), n=0), r"n = 0, expected 1 to 2"),
    ],
    ids=["size", "no pixel", "channels", "no image", "dict", "integers", "kind of config", "config of DINO",
         "config of CineMA", "axes", "n", "n of 0"],
)  # fmt: skip
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(small_vit())
