"""Layers against PyTorch's own modules in float64, in value, gradient and what they keep for backward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close, assert_no_worse
from torch import nn

from cinema_fast.models.layers import Block, Decoder, Encoder, compute_dtype, norm_gelu, norm_linear, norm_mlp

SHAPES = {"one row": (1, 6), "tokens": (3, 5, 33), "positions": (2, 3, 4, 4, 1, 16), "no row": (2, 0, 8)}


class Pieces(nn.Module):
    """A norm and what follows it, once by our functions and once by PyTorch's modules."""

    def __init__(self, kind: str, width: int, eps: float = 1e-5):
        super().__init__()
        self.kind = kind
        self.norm = nn.LayerNorm(width, eps=eps)
        if kind == "norm_linear":
            self.fc = nn.Linear(width, width + 3)
        if kind == "norm_mlp":
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 1)

    def ours(self, x):
        if self.kind == "norm_linear":
            return norm_linear(x, self.norm, self.fc.weight, self.fc.bias)
        return norm_mlp(x, self.norm, self.fc1, self.fc2) if self.kind == "norm_mlp" else norm_gelu(x, self.norm)

    def forward(self, x):
        x = self.norm(x)
        if self.kind == "norm_linear":
            return self.fc(x)
        return self.fc2(F.gelu(self.fc1(x))) if self.kind == "norm_mlp" else F.gelu(x)


KINDS = ("norm_linear", "norm_mlp", "norm_gelu")


def rows(shape, dtype=torch.float32):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (3 * x + 2).to(dtype)


def results(call, module, x, upstream):
    """{name: value or gradient} of one forward and backward."""
    module.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    y = call(x)
    y.backward(upstream.to(y.dtype))
    return {"y": y.detach(), "dx": x.grad, **{f"d{n}": p.grad for n, p in module.named_parameters()}}


def upstream_like(y):
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind, shape, dtype):
    module = Pieces(kind, shape[-1]).to(dtype)
    x = rows(shape, dtype)
    upstream = upstream_like(module(x)).to(dtype)
    actual = results(module.ours, module, x, upstream)
    exact = copy.deepcopy(module).double()
    expected = results(exact, exact, x.double(), upstream.double())
    for name, want in expected.items():
        assert actual[name].dtype == dtype, name
        assert_close(actual[name], want, name=name)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    module = Pieces(kind, 4).double()
    torch.autograd.gradcheck(
        lambda x, *_: module.ours(x), (rows((3, 4), torch.float64).requires_grad_(), *module.parameters())
    )


def bfloat16_peers(module, x):
    """Ours and PyTorch's under autocast, and PyTorch's in float64."""
    upstream = upstream_like(module(x.float())).bfloat16()

    def under_autocast(call):
        def run(x):
            with torch.autocast("cpu", torch.bfloat16):
                return call(x)

        return run

    ours = results(under_autocast(module.ours), module, x, upstream)
    peer = results(under_autocast(module), module, x, upstream)
    exact = copy.deepcopy(module).double()
    return ours, peer, results(exact, exact, x.double(), upstream.double())


@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16], ids=["float32 stream", "bfloat16 stream"])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_as_good_as_pytorchs(kind, stream):
    module, x = Pieces(kind, 48), rows((4, 1200, 48), stream)  # as many rows as a stem has
    ours, peer, expected = bfloat16_peers(module, x)
    assert ours["y"].dtype == (stream if kind == "norm_gelu" else torch.bfloat16)
    assert ours["dx"].dtype == stream
    for name, want in expected.items():
        assert_close(ours[name], want, torch.bfloat16, name=name)
        assert_no_worse(ours[name].bfloat16(), peer[name].bfloat16(), want, name)


def test_compute_dtype():
    x = torch.zeros(1)
    assert compute_dtype(x) == torch.float32 and compute_dtype(x.double()) == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(x) == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert compute_dtype(x) == torch.float32


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize(("kind", "kept_widths"), [("norm_linear", 1), ("norm_mlp", 5), ("norm_gelu", 1)])
def test_what_is_kept_for_backward(kind, kept_widths, autocast):
    """The normalised input, and the MLP's hidden layer before GELU, in the compute dtype; a float32 a row."""
    module, x = Pieces(kind, 32), rows((10, 32)).requires_grad_()
    kept = {}

    def pack(t):
        if not isinstance(t, nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    spy = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), spy:
        module.ours(x)
    size = 2 if autocast and kind != "norm_gelu" else 4
    assert sum(kept.values()) == 10 * (32 * kept_widths * size + 4)


def test_mlp_of_1x1_convolutions_is_that_of_linear_layers():
    module = Pieces("norm_mlp", 6)
    fc1, fc2 = nn.Conv3d(6, 24, 1), nn.Conv3d(24, 6, 1)
    for conv, linear in ((fc1, module.fc1), (fc2, module.fc2)):
        conv.weight.data, conv.bias.data = linear.weight.data.view(conv.weight.shape), linear.bias.data
    x = rows((2, 5, 6))
    y = norm_mlp(x, module.norm, fc1, fc2)
    assert torch.equal(y, module.ours(x))
    y.sum().backward()
    assert fc1.weight.grad.shape == fc1.weight.shape


def shuffle(module):
    """Weights of no special value: fresh norms are 1 and 0, fresh tokens are not set."""
    generator = torch.Generator().manual_seed(3)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3
    return module.double()


def attention_of(block):
    """PyTorch's module with the weights of a block's attention."""
    attn, width = block.attn, block.attn.q.in_features
    peer = nn.MultiheadAttention(width, attn.n_heads, batch_first=True, dtype=torch.float64)
    peer.in_proj_weight.data = torch.cat([attn.q.weight, attn.kv.weight]).detach()
    peer.in_proj_bias.data = torch.cat([attn.q.bias, attn.kv.bias]).detach()
    peer.out_proj = attn.proj
    return peer


def block_by_modules(block, x, keys=None):
    h = block.norm1(x)
    keys = h if keys is None else keys
    x = x + attention_of(block)(h, keys, keys, need_weights=False)[0]
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


def test_encoder_is_a_class_token_and_prenorm_blocks():
    encoder = shuffle(Encoder(24, 2, 3))
    tokens = rows((2, 5, 24), torch.float64)
    x = torch.cat([encoder.cls_token.expand(2, 1, 24), tokens], dim=1)
    for block in encoder.blocks:
        x = block_by_modules(block, x)
    assert_close(encoder(tokens), encoder.norm(x))


def test_decoder_is_cross_attention_to_the_visible_tokens_as_they_are():
    decoder = shuffle(Decoder(24, 2, 3))
    queries, visible = rows((2, 7, 24), torch.float64), rows((2, 4, 24), torch.float64).flip(0)
    x = queries
    for block in decoder.blocks:
        x = block_by_modules(block, x, visible)
    assert_close(decoder(queries, visible), decoder.norm(x))


def test_gradients_of_a_block_reach_every_parameter():
    block = shuffle(Block(16, 2))
    x = rows((2, 3, 16), torch.float64)
    upstream = upstream_like(x)
    actual = results(block, block, x, upstream)
    copies = {n: p.detach().requires_grad_() for n, p in block.named_parameters()}
    expected = results(lambda x: _dense_block(copies, x), block, x, upstream)
    assert_close(actual["y"], expected["y"])
    assert_close(actual["dx"], expected["dx"])
    for name, p in copies.items():
        # a shift of all keys changes no attention: its bias has no gradient, up to rounding
        assert_close(actual[f"d{name}"], p.grad, floor=1e-2, name=name)


def _dense_block(p, x):
    """Softmax attention of two heads and an MLP, written out on a dict of parameters."""
    h = F.layer_norm(x, (16,), p["norm1.weight"], p["norm1.bias"])
    q = h @ p["attn.q.weight"].T + p["attn.q.bias"]
    k, v = (h @ p["attn.kv.weight"].T + p["attn.kv.bias"]).chunk(2, -1)
    q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v))
    mixed = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
    x = x + mixed.transpose(1, 2).flatten(2) @ p["attn.proj.weight"].T + p["attn.proj.bias"]
    h = F.layer_norm(x, (16,), p["norm2.weight"], p["norm2.bias"])
    return x + F.gelu(h @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"]) @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]
