"""Tables of what was fastest on a GPU: which entry applies, what it changes, and what is wrong with one."""

import json

import pytest
import torch
from attention_cases import check, make, offsets
from marks import slow

from cinema_fast.kernels import tuning
from cinema_fast.kernels.attention_peers import PEERS
from cinema_fast.kernels.sparse_attention import sparse_attention, sparse_attention_config

GPU, STEM = "NVIDIA Test 80GB (SXM)", "nvidia-test-80gb-sxm"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TILES = {"fwd": [32, 128, 8, 3], "dq": [64, 32, 4, 1], "dkv": [128, 16, 8, 4]}


def entry(queries=769, keys=769, head_dim=64, dtype="bf16", **more):
    return {"dtype": dtype, "head_dim": head_dim, "queries": queries, "keys": keys, **more}


def table(*entries):
    return {"gpu": GPU, "date": "", "commit": "", "versions": {}, "sparse_attention": list(entries)}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Makes a table that of the GPU, and every tensor lie on it; gives the file."""
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    monkeypatch.setattr(tuning, "gpu_of", lambda device: GPU)

    def write(content):
        path = tmp_path / f"{STEM}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def config(queries=769, keys=769, head_dim=64, dtype=BF16, gpu=GPU):
    """[ROWS, COLS, warps, stages] by pass"""
    found = sparse_attention_config(head_dim, queries, keys, dtype, gpu)
    names = "ROWS", "COLS", "num_warps", "num_stages"
    return {name: [tile[n] for n in names] for name, tile in found.items()}


def test_slug():
    assert tuning.slug("NVIDIA H200") == "nvidia-h200" and tuning.slug(GPU) == STEM


def test_tables_of_the_package_are_valid():
    for path in tuning.FOLDER.glob("*"):
        assert path.suffix == ".json" and tuning.slug(tuning.read(path)["gpu"]) == path.stem


def test_the_entry_of_these_lengths(write):
    static = config(gpu=None)
    write(table(entry(768, 768, tiles={"fwd": [16, 16, 4, 1]}), entry(tiles=TILES)))
    assert config() == TILES != static
    assert config(gpu=None) == config(gpu="NVIDIA Other") == static
    whole = sparse_attention_config(64, 769, 769, BF16, GPU)
    assert (whole["fwd"]["TAIL_ROWS"], whole["fwd"]["TAIL_COLS"]) == (32, 16)  # made for the tiles: 769 = 24 x 32 + 1
    assert whole["dkv"]["TAIL_ROWS"] == 16


def test_the_nearest_entry_of_this_head_dim_and_dtype(write):
    few, many = {"fwd": [16, 16, 4, 1]}, {"fwd": [128, 128, 8, 2]}
    write(table(entry(256, 256, tiles=few), entry(1024, 256, tiles=many), entry(512, 64, 32, "fp16", tiles=few)))
    # by ratios: 500 is nearer to 256 than to 1024, 520 is not, and each counts as much
    for queries, keys, tiles in ((500, 256, few), (520, 256, many), (500, 4096, few), (500, 1, few), (9999, 999, many)):
        assert config(queries, keys)["fwd"][2:] == tiles["fwd"][2:], (queries, keys)
        assert config(queries, keys)["dq"] == config(queries, keys, gpu=None)["dq"]  # of which the entry says nothing
    for others in ((32, BF16), (64, FP16), (64, FP32)):
        assert config(512, 64, *others) == config(512, 64, *others, gpu=None)
    assert config(512, 64, 32, FP16)["fwd"] == few["fwd"]
    assert config(0, 3)["fwd"] == [16, 16, 4, 1]  # no tile is longer than the sequences


def test_an_entry_without_tiles_is_passed_over(write):
    write(table(entry(backend="triton"), entry(256, 256, tiles=TILES)))
    assert config() == TILES


@pytest.fixture
def taken(monkeypatch):
    """Names of the peers that ran, in order; every peer computes as sdpa does, and none has a reason not to."""
    names = []
    for name in PEERS:

        def attend(*args, name=name):
            names.append(name)
            return sdpa(*args)

        monkeypatch.setitem(PEERS, name, (attend, lambda *_: []))
    return names


sdpa = PEERS["sdpa"][0]


def attend(lengths_q, lengths_k, width=8, dtype=FP32, **how):
    (q, k, v), _ = make(lengths_q, lengths_k, dtype, width=width)
    bounds = {"max_q": max(lengths_q), "max_k": max(lengths_k)}
    return sparse_attention(q, k, v, offsets(lengths_q), offsets(lengths_k), **bounds, **how)


def test_a_backend_is_taken_for_equal_lengths_near_the_entry(write, taken):
    write(table(entry(40, 20, 8, "fp32", backend="cudnn"), entry(400, 20, 8, "fp32", backend="sdpa")))
    lengths = (40, 20), (50, 16), (51, 20), (40, 15), (400, 20), (1, 20)
    for queries, keys in lengths:
        attend([queries] * 2, [keys] * 2)
    assert taken == ["cudnn", "cudnn", "flash", "flash", "sdpa", "flash"]  # flash: what stands first without a table
    taken.clear()
    attend([40, 39], [20, 20])
    attend([40, 40], [20, 19])
    attend([40, 40], [20, 20], width=16)
    attend([40, 40], [20, 20], dtype=torch.float64)
    attend([40, 40], [20, 20], backend="xformers")
    assert taken == ["flash", "flash", "flash", "flash", "xformers"]


def test_a_backend_that_cannot_run_is_passed_over(write, taken, monkeypatch):
    write(table(entry(4, 2, 8, "fp32", backend="cudnn")))
    monkeypatch.setitem(PEERS, "cudnn", (PEERS["cudnn"][0], lambda *_: ["not today"]))
    attend([4, 4], [2, 2])
    assert taken == ["flash"]


@pytest.mark.parametrize("dynamic", [False, slow(True)])
def test_one_graph_without_breaks(write, taken, dynamic):
    write(table(entry(4, 2, 8, "fp32", backend="cudnn"), entry(400, 20, 8, "fp32", backend="sdpa")))
    torch.compiler.reset()
    compiled = torch.compile(sparse_attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for queries, keys, name in ((4, 2, "cudnn"), (400, 20, "sdpa"), (40, 20, "flash")):
        (q, k, v), _ = make([queries] * 2, [keys] * 2, FP32)
        args = q, k, v, offsets([queries] * 2), offsets([keys] * 2)
        torch.testing.assert_close(
            compiled(*args, max_q=queries, max_k=keys), sparse_attention(*args, backend="torch")
        )
        assert taken == [name]  # when it is traced
        taken.clear()


def test_without_a_table_other_lengths_are_no_other_graphs():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(sparse_attention, fullgraph=True, backend=count, dynamic=True)
    for length in (13, 17, 19, 23, 29):  # none of them any other size
        (q, k, v), _ = make([length] * 2, [length] * 2, FP32)
        cu = offsets([length] * 2)
        compiled(q, k, v, cu, cu, max_q=length, max_k=length)
    assert len(graphs) == 1


def test_override(write):
    write(table(entry(tiles=TILES)))
    tried = {"sparse_attention": [entry(tiles={"dq": [16, 32, 4, 2]})]}
    with tuning.override(tried):
        for gpu in (GPU, None, "NVIDIA Other"):
            assert config(gpu=gpu) == config(gpu="NVIDIA Other") | {"dq": [16, 32, 4, 2]}
        with tuning.override(table()):
            assert config() == config(gpu=None) and config()["dq"] != [16, 32, 4, 2]
        assert config()["dq"] == [16, 32, 4, 2]
    assert config() == TILES
    with pytest.raises(KeyError), tuning.override(tried):
        raise KeyError
    assert config() == TILES
    with pytest.raises(ValueError, match=r"^sparse_attention\[0\]: dtype: None"), tuning.override(table({})):
        pytest.fail("not entered")
    assert config() == TILES


def test_tiles_of_a_table_run(backend, device):
    """The operation with tiles that are not its own, in all passes."""
    tried = [entry(40, 70, 8, dtype, tiles=TILES) for dtype in ("fp32", "fp16")]
    with tuning.override({"sparse_attention": tried}):
        assert sparse_attention_config(8, 70, 40, FP32)["dkv"]["COLS"] == TILES["dkv"][1]
        for dtype in (FP32, FP16):
            lengths = [70, 3], [40, 33]
            check(*make(*lengths, dtype, heads=1, device=device), *lengths, backend=backend)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"Expecting"),
        ("[]", r'expected an object with a list "sparse_attention"'),
        ({"sparse_attention": {}}, r'expected an object with a list "sparse_attention"'),
        ({"sparse_attention": []}, r'"gpu" must be the name of a device, got None'),
        (table(7), r"sparse_attention\[0\]: expected an object, got 7"),
        (table(entry(), entry(dtype="half")), r"sparse_attention\[1\]: dtype: 'half' \(expected bf16, fp16, fp32\)"),
        (table(entry(dtype=["bf16"])), r"dtype: \['bf16'\]"),
        (table(entry(head_dim=True)), r"head_dim: True \(expected 1 to "),
        (table(entry(queries="769")), r"queries: '769' \(expected 1 to "),
        (table(entry(keys=0)), r"keys: 0 \(expected 1 to "),
        (table(entry(backend="cuda")), r"backend: 'cuda' \(expected triton, flash, sdpa, cudnn, xformers\)"),
        (table(entry(backend=None)), r"backend: None"),
        (table(entry(tiles=[])), r"tiles: expected an object, got \[\]"),
        (table(entry(tiles={"bwd": [64, 64, 4, 2]})), r"tiles: 'bwd' \(expected fwd, dq, dkv\)"),
        (table(entry(tiles={"fwd": [64, 64, 4]})), r"fwd: expected \[ROWS, COLS, warps, stages\], got \[64, 64, 4\]"),
        (table(entry(tiles={"fwd": [64, 96, 4, 2]})), r"fwd: 96 \(expected 16, 32, 64, 128, 256\)"),
        (table(entry(tiles={"fwd": [64, 64, 3, 2]})), r"fwd: 3 \(expected 4, 8\)"),
        (table(entry(tiles={"fwd": [64, 64, 4, 0]})), r"fwd: 0 \(expected 1 to 7\)"),
        (table(entry(tiles={"fwd": [64, 64.0, 4, 2]})), r"fwd: 64.0"),
    ],
)
def test_a_malformed_table_is_named_when_it_is_first_used(write, content, said):
    path = write(content)
    assert config(gpu=None) and config(gpu="NVIDIA Other")
    cure = r"delete it, or let benchmarks/gpu/gpu_first.py write it again"
    for use in (config, lambda: tuning.read(path), lambda: attend([2], [2])):
        with pytest.raises(ValueError, match=f"{STEM}.json: not a table of tuned kernels .*{said}.*{cure}"):
            use()


def test_reading_a_table_as_it_is_written(write):
    content = table(entry(backend="cudnn", tiles=TILES, us={"fwd": 1.5}, peer_us={"cudnn": {"fwd": 1.0}}))
    assert tuning.read(write(content)) == content
    with pytest.raises(ValueError, match=r"not a table of tuned kernels \(.*utf-8"):
        path = write("")
        path.write_bytes(b'"\xff"')
        tuning.read(path)
    with pytest.raises(FileNotFoundError):
        tuning.read(path.with_name("none.json"))
