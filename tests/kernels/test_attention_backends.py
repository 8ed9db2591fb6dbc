"""What sparse_attention runs on: the choice, PyTorch's forms against the oracle, the peers' calls, costs, bad input."""

import re
import sys
from types import SimpleNamespace

import attention_cases
import pytest
import torch
from attention_cases import IN_RUNS, LENGTHS, RUNS, check, make, offsets
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.attention import SDPBackend

from cinema_fast.info import describe
from cinema_fast.kernels import BackendError, attention_peers, use
from cinema_fast.kernels.attention_peers import PEERS
from cinema_fast.kernels.backend import choose
from cinema_fast.kernels.sparse_attention import (
    sparse_attention,
    sparse_attention_bytes,
    sparse_attention_config,
    sparse_attention_flops,
    sparse_attention_ref,
)

EVERYWHERE = ["auto", "sdpa", "torch"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("form", EVERYWHERE)
def test_pytorch_forms(lengths, dtype, form):
    check(*make(*lengths, dtype), *lengths, backend=form)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("multiplies", [True, False])
@pytest.mark.parametrize("bounds", [{}, {"max_q": 33, "max_k": 17}], ids=["packed", "equal"])
@pytest.mark.parametrize("few", [33 * 17, 33 * 17 - 1])
@pytest.mark.parametrize("at_once", [1, 3 * 33 * 17])
def test_16_bits_on_any_cpu(monkeypatch, dtype, multiplies, bounds, few, at_once):
    """By plain products where the CPU multiplies bf16 and sequences are short; where it does not, in float32."""
    calls = []

    def spied(name):
        way = getattr(attention_peers, name).apply
        monkeypatch.setattr(getattr(attention_peers, name), "apply", lambda *args: (calls.append(name), way(*args))[1])

    spied("_ExplicitOnCpu"), spied("_WideOnCpu")
    for name, value in (
        ("TILES", False), ("BF16_WITHOUT_TILES", multiplies), ("FEW_SCORES", few), ("SCORES_AT_ONCE", at_once),
    ):  # fmt: skip
        monkeypatch.setattr(attention_peers, name, value)
    lengths = [33, 33], [17, 17]
    check(*make(*lengths, dtype), *lengths, **bounds, backend="sdpa")
    if not multiplies or dtype == torch.float16:
        assert set(calls) == {"_WideOnCpu"}
    else:
        assert set(calls) == ({"_ExplicitOnCpu"} if few == 33 * 17 else set())


def test_large_scores_in_bf16_on_any_cpu(monkeypatch):
    """Scores of deviation 16: rounded to bf16 before the softmax, they would give gradients an error of 4 %."""
    monkeypatch.setattr(attention_peers, "TILES", False)
    monkeypatch.setattr(attention_peers, "BF16_WITHOUT_TILES", True)
    lengths = [65, 65], [65, 65]
    (q, k, v), upstream = make(*lengths, torch.bfloat16, width=64)
    check((4 * q, 4 * k, v), upstream, *lengths, backend="sdpa")


@pytest.mark.parametrize("outer", [torch.bfloat16, torch.float16], ids=str)
def test_backward_within_autocast(monkeypatch, outer):
    monkeypatch.setattr(attention_peers, "TILES", False)
    monkeypatch.setattr(attention_peers, "BF16_WITHOUT_TILES", True)
    inputs, upstream = make([5, 5], [5, 5], torch.bfloat16)
    leaves = [x.requires_grad_() for x in inputs]
    out = sparse_attention(*leaves, offsets([5, 5]), offsets([5, 5]), backend="sdpa")
    expected = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    with torch.autocast("cpu", dtype=outer):
        found = torch.autograd.grad(out, leaves, upstream)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("form", EVERYWHERE)
@pytest.mark.parametrize(("heads", "width"), [(1, 16), (3, 24), (2, 136)])
def test_heads_and_widths(heads, width, form):
    check(*make([3, 4], [6, 2], heads=heads, width=width), [3, 4], [6, 2], backend=form)


@pytest.mark.parametrize("form", EVERYWHERE)
@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_scales_that_the_kernel_lacks(scale, form):
    check(*make([3, 4], [6, 2]), [3, 4], [6, 2], scale=scale, backend=form)


@pytest.mark.parametrize("form", EVERYWHERE)
@pytest.mark.parametrize("name", ["cross, equal", "no key in one"])
def test_gradcheck(name, form):
    inputs, _ = make(*LENGTHS[name], heads=1, width=8)
    cu_q, cu_k = (offsets(n) for n in LENGTHS[name])
    leaves = [t.requires_grad_() for t in inputs]
    torch.autograd.gradcheck(lambda *t: sparse_attention(*t, cu_q, cu_k, backend=form), leaves)


@pytest.mark.parametrize("form", EVERYWHERE)
@pytest.mark.parametrize("bounds", [{}, {"max_q": 5, "max_k": 5}], ids=["packed", "equal"])
def test_autocast_changes_nothing(form, bounds):
    (q, k, v), _ = make([5, 5], [5, 5], torch.float32)
    cu = offsets([5, 5])
    expected = sparse_attention(q, k, v, cu, cu, **bounds, backend=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sparse_attention(q, k, v, cu, cu, **bounds, backend=form)
    assert out.dtype == torch.float32 and torch.equal(out, expected)


def test_auto_takes_the_fused_form_on_the_cpu_and_use_overrules_it(monkeypatch):
    taken = []

    def spy(name, function):
        return lambda *args: (taken.append(name), function(*args))[1]

    monkeypatch.setitem(PEERS, "sdpa", (spy("sdpa", PEERS["sdpa"][0]), PEERS["sdpa"][1]))
    home = sys.modules[sparse_attention.__module__]
    monkeypatch.setattr(home, "sparse_attention_ref", spy("torch", sparse_attention_ref))
    (q, k, v), _ = make([3], [4])
    args = q, k, v, offsets([3]), offsets([4])
    sparse_attention(*args)
    with use("torch"):
        sparse_attention(*args)
        with use("sdpa"):
            sparse_attention(*args)
            sparse_attention(*args, backend="torch")
    assert taken == ["sdpa", "torch", "sdpa", "torch"]


@pytest.mark.parametrize("form", ["sdpa", "torch"])
def test_runs_of_equal_sequences_take_a_call_each(form, monkeypatch):
    """As without `runs`, which take one sequence after another."""
    shapes = []

    def spy(function):
        return lambda q, *args: (shapes.append(tuple(q.shape)), function(q, *args))[1]

    monkeypatch.setitem(PEERS, "sdpa", (spy(PEERS["sdpa"][0]), PEERS["sdpa"][1]))
    monkeypatch.setattr(sys.modules[sparse_attention.__module__], "sparse_attention_ref", spy(sparse_attention_ref))
    bounds = {"max_q": 5, "max_k": 7, "backend": form}
    check(*make(*IN_RUNS), *IN_RUNS, **bounds, runs=RUNS)
    assert shapes == [(10, 2, 8), (6, 2, 8)]
    check(*make(*IN_RUNS), *IN_RUNS, **bounds, runs=None)


def test_use_may_name_the_operations_that_it_is_for():
    def picked(operation: str) -> str:
        return choose(operation, "auto", {"triton": list, "sdpa": list})

    with use("sdpa", "sparse_attention", "masked_mse"):
        assert [picked(op) for op in ("sparse_attention", "masked_mse", "patch_embed")] == ["sdpa", "sdpa", "triton"]
        with use("torch"):
            assert [picked(op) for op in ("sparse_attention", "patch_embed")] == ["sdpa", "torch"]
        with use("torch", "sparse_attention"):
            assert [picked(op) for op in ("sparse_attention", "masked_mse")] == ["torch", "sdpa"]
        assert picked("sparse_attention") == "sdpa"
    assert picked("sparse_attention") == "triton"
    with pytest.raises(BackendError, match=r"unknown operation 'sparse_atention'; expected .*sparse_attention"):
        use("torch", "sparse_atention").__enter__()
    with use("cuda", "sparse_attention"), pytest.raises(BackendError, match="no backend 'cuda'"):
        picked("sparse_attention")


def test_a_backend_that_cannot_run_says_why():
    (q, k, v), _ = make([3], [4], width=264)
    args = q, k, v, offsets([3]), offsets([4])
    reasons = r"cannot run: .*dtype float64 \(expected .*head dim 264 \(expected a multiple of 8 up to 128\).*scale -1"
    with pytest.raises(BackendError, match=reasons):
        sparse_attention(*args, scale=-1, backend="triton")
    with pytest.raises(BackendError, match=r"needs CUDA tensors, got cpu.*needs bfloat16 or float16, got float64"):
        sparse_attention(*args, backend="flash")
    with use("xformers"), pytest.raises(BackendError, match=r"head dim 264"):
        sparse_attention(*args)
    (q, k, v), _ = make([3, 2], [4, 4], width=136)
    reasons = r"needs CUDA.*got float64; head dim 136 \(expected 8, .*, 128\); needs sequences that are all equally"
    with pytest.raises(BackendError, match=reasons):
        sparse_attention(q, k, v, offsets([3, 2]), offsets([4, 4]), backend="cudnn")
    names = "auto, triton, flash, sdpa, cudnn, xformers, torch"
    with pytest.raises(BackendError, match=f"no backend 'cuda'; it has {names}"):
        sparse_attention(*args, backend="cuda")


@pytest.mark.parametrize("name", ["flash-attn-4", "flash-attn 2", "xformers"])
def test_arguments_that_a_library_gets(monkeypatch, name):
    """With a stand-in that computes by the oracle from what it is given."""

    def flash_4(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, deterministic):
        return sparse_attention_ref(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale), 0

    def flash_2(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale, deterministic):
        return sparse_attention_ref(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale)

    def memory_efficient(q, k, v, *, attn_bias, scale):
        cu_q, cu_k = (offsets(n) for n in attn_bias)
        return sparse_attention_ref(q[0], k[0], v[0], cu_q, cu_k, max(attn_bias[0]), max(attn_bias[1]), scale)[None]

    mask = SimpleNamespace(from_seqlens=lambda q, k, device: (q, k))
    ops = SimpleNamespace(
        memory_efficient_attention=memory_efficient, fmha=SimpleNamespace(BlockDiagonalMask=mask)
    )
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash_2))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", SimpleNamespace(flash_attn_varlen_func=flash_4))
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(ops=ops))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(attention_peers, "_flash_4", lambda q: name == "flash-attn-4")
    peer = "xformers" if name == "xformers" else "flash"
    monkeypatch.setitem(PEERS, peer, (PEERS[peer][0], lambda *_: []))
    for lengths in ("unequal", "cross, equal"):
        check(*make(*LENGTHS[lengths]), *LENGTHS[lengths], scale=0.3, backend=peer)


XFORMERS = {  # what is in xformers/ops/fmha/__init__.py, and what is said of it
    "0.0.35": ("class BlockDiagonalMask: pass\nmemory_efficient_attention = print\n", None),
    # as it is where mslk is the index's empty placeholder
    "0.0.36": (
        "try:\n    from mslk.attention.fmha import BlockDiagonalMask, memory_efficient_attention\n"
        "except ModuleNotFoundError:\n    pass\n",
        r"xformers 0.0.36 has no attention here \(ImportError: cannot import name .*xformers>=.*<0.0.36.*mslk.*empty",
    ),
    "0.0.34": ("raise OSError('libcudart is missing')", r"xformers 0.0.34 has .* \(OSError: libcudart is missing\)"),
}


@pytest.mark.parametrize("version", XFORMERS)
def test_an_xformers_without_attention_is_said_to_be(tmp_path, monkeypatch, version):
    source, said = XFORMERS[version]
    for module, text in {"": "", "ops": "", "ops/fmha": source}.items():
        file = tmp_path / "xformers" / module / "__init__.py"
        file.parent.mkdir()
        file.write_text(text)
    metadata = tmp_path / f"xformers-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: xformers\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("xformers", "xformers.ops", "xformers.ops.fmha"):  # to be taken out again in the end
        monkeypatch.setitem(sys.modules, module, None)
        del sys.modules[module]
    attention_peers.xformers_problem.cache_clear()
    on_gpu = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, shape=(3, 2, 64))
    try:
        why = "; ".join(attention_peers.xformers_unsupported(on_gpu, on_gpu, on_gpu, True))
        (line,) = (line for line in describe().splitlines() if line.startswith("xformers"))
    finally:
        attention_peers.xformers_problem.cache_clear()
    if said is None:
        assert not why and re.fullmatch(r"xformers +installed: attention backend .*", line)
    else:
        assert re.match(said, why) and "installed, but unusable" in line and why in line


@pytest.mark.parametrize("compiled", [False, True])
def test_cudnn_alone_is_allowed_where_it_is_asked_for(monkeypatch, compiled):
    """Without cuDNN: a stand-in in the place of PyTorch's attention, and no reason not to run."""
    allowed, graphs = [], []

    def attention(q, k, v, *, scale):
        if not compiled:
            allowed.append(torch.nn.attention._cur_sdpa_kernel_backends())
        return (scale * q @ k.mT).softmax(-1) @ v

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(attention_peers, "F", SimpleNamespace(scaled_dot_product_attention=attention))
    monkeypatch.setitem(PEERS, "cudnn", (PEERS["cudnn"][0], lambda *_: []))
    before = torch.nn.attention._cur_sdpa_kernel_backends()
    if compiled:
        torch.compiler.reset()
        whole = torch.compile(sparse_attention, fullgraph=True, backend=backend)
        monkeypatch.setattr(attention_cases, "sparse_attention", whole)
    lengths = LENGTHS["cross, equal"]
    check(*make(*lengths), *lengths, scale=0.3, max_q=lengths[0][0], max_k=lengths[1][0], backend="cudnn")
    assert torch.nn.attention._cur_sdpa_kernel_backends() == before
    if not compiled:
        assert allowed == [[SDPBackend.CUDNN_ATTENTION]]
        return
    (graph,) = graphs
    steps = [node.target for node in graph.graph.nodes if node.op.startswith("call")]
    inside, after = (i for i, step in enumerate(steps) if step is torch.nn.attention._sdpa_kernel)
    products = [i for i, step in enumerate(steps) if "matmul" in str(step)]
    assert len(products) == 2 and all(inside < i < after for i in products)
    named = [node.args[0] for node in graph.graph.nodes if node.target is torch.nn.attention._backend_from_string]
    assert named[0] == "CUDNN_ATTENTION" and set(named[1:]) == {b.name for b in before}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("head_dim", [8, 24, 32, 64, 80, 128])
def test_configuration(head_dim, dtype):
    for max_q, max_k in ((769, 769), (2304, 768), (1, 1), (0, 5), (17, 200), (129, 0)):
        config = sparse_attention_config(head_dim, max_q, max_k, dtype)
        assert set(config) == {"fwd", "dq", "dkv"}
        for name, tile in config.items():
            owned, walked = (max_k, max_q) if name == "dkv" else (max_q, max_k)
            for longest, block, tail, most in (
                (owned, tile["ROWS"], tile["TAIL_ROWS"], 128),
                (walked, tile["COLS"], tile["TAIL_COLS"], 32),
            ):
                assert block in (16, 32, 64, 128) and block < max(32, 2 * longest)  # what a matrix unit takes
                few = block >= 64 and 0 < longest % block <= 16
                assert tail == (16 if few else min(block, most))
            assert tile["num_warps"] in (4, 8)


def test_costs():
    q, k = torch.empty(10, 2, 8, dtype=torch.float16), torch.empty(6, 2, 8, dtype=torch.float16)
    assert sparse_attention_flops(10 * 3, 2, 8) == 4 * 30 * 2 * 8
    assert sparse_attention_flops(10 * 3, 2, 8, backward=True) == 10 * 30 * 2 * 8
    lse = 10 * 2 * 4
    assert sparse_attention_bytes(q, k) == 2 * (2 * 160 + 2 * 96) + lse  # q, out; k, v
    assert sparse_attention_bytes(q, k, backward=True) == 2 * (4 * 160 + 4 * 96) + lse  # and dout, dq; dk, dv


GOOD = {"q": torch.ones(6, 2, 8), "k": torch.ones(5, 2, 8), "v": torch.ones(5, 2, 8)}
GOOD |= {"cu_q": offsets([3, 3]), "cu_k": offsets([2, 3])}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"q": torch.ones(6, 16)}, r"expected q \(Tq, H, D\) .* got q \(6, 16\), k \(5, 2, 8\)"),
        ({"v": torch.ones(6, 2, 8)}, r"got q \(6, 2, 8\), k \(5, 2, 8\), v \(6, 2, 8\)"),
        ({n: torch.ones(len(GOOD[n]), 2, 12) for n in "qkv"}, r"a multiple of 8, got 12 \(q \(6, 2, 12\)\)"),
        ({"q": torch.ones(6, 3, 8)}, r"got q \(6, 3, 8\), k \(5, 2, 8\)"),
        ({"cu_q": offsets([6])}, r"expected cu_q and cu_k \(B \+ 1,\), .* cu_q \(2,\), cu_k \(3,\)"),
        ({"cu_q": offsets([]), "cu_k": offsets([])}, r"B >= 1, got .* cu_q \(1,\)"),
        ({"cu_q": offsets([3, 3]).long()}, r"cu_q, cu_k in int32, got .* cu_q int64, cu_k int32"),
        ({"k": torch.ones(5, 2, 8).half()}, r"one floating dtype .* got q float32, k float16, v float32"),
        ({"q": torch.ones(6, 2, 8).int(), "k": GOOD["k"].int(), "v": GOOD["v"].int()}, "floating .* got q int32"),
        ({"cu_k": offsets([2, 3], "meta")}, r"one device, got .* cu_q cpu, cu_k meta"),
        ({"cu_q": offsets([4, 2]) + 1}, r"cu_q must rise from 0 to 6 \(the rows\), got \[1, 5, 7\]"),
        ({"cu_q": offsets([4, 3])}, r"cu_q must rise from 0 to 6 \(the rows\), got \[0, 4, 7\]"),
        ({"cu_k": torch.tensor([0, 6, 5], dtype=torch.int32)}, r"cu_k must rise from 0 to 5 .* got \[0, 6, 5\]"),
        ({"cu_q": offsets([2, 4]), "max_q": 3}, "cu_q: a sequence has 4 rows, more than the 3 that were given"),
        ({"max_q": 2}, "cu_q: 2 sequences of at most 2 rows cannot hold 6 rows"),
        ({"cu_q": offsets([5, 1]), "max_q": 4}, "cu_q: a sequence has 5 rows, more than the 4 that were given"),
    ],
)
def test_bad_arguments_are_named(change, match):
    with pytest.raises(ValueError, match=match):
        sparse_attention(**{**GOOD, **change})
