"""sparse_attention's passes at each tile, beside cuDNN and FlashAttention; the fastest become the GPU's tuned table.

A tile must give what the static choice gives before it is timed. The table is what kernels/tuned/<gpu>.json holds,
which `cinema_fast.kernels.tuning` reads.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from unittest import mock

import bench_sparse_attention
import conditions
import gpu_turn
import timing
import torch
from gpu_step import attempt
from report_schema import TileRow
from torch import Tensor

from cinema_fast.kernels import tuning
from cinema_fast.kernels.shapes import ATTENTION_SHAPES, AttentionShape
from cinema_fast.kernels.sparse_attention import sparse_attention, sparse_attention_config, sparse_attention_flops

LAUNCHES = {"fwd": "sparse_attention", "dq": "sparse_attention_dq", "dkv": "sparse_attention_dkv"}
TILES = ((128, 64, 8, 3), (64, 128, 4, 2), (64, 64, 4, 2), (128, 32, 4, 3))  # rows, columns, warps, stages
SHAPES = ("cinema-base-encoder-b64", "cinema-decoder-b64", "cinema-decoder-quarter-b64")
PEERS = ("sdpa cudnn", "sdpa", "sdpa flash", "flash")  # ways of the benchmark
BACKENDS = {"sdpa cudnn": "cudnn", "sdpa": "sdpa", "flash": "flash"}  # those that sparse_attention has as such
WORTH = 1.25  # times as fast as ours, both passes together: then a peer becomes the backend of a shape
ROUNDS = 20


def names(smoke: bool) -> list[str]:
    """The rows that `measure` gives, without those of the static tiles and of peers, which may be missing."""
    return [f"tile {shape} {pass_} {label(tile)}" for shape in _shapes(smoke) for pass_ in LAUNCHES for tile in TILES]


def label(tile: tuple[int, ...]) -> str:
    """A tile as rows call it."""
    rows, cols, warps, stages = tile
    return f"{rows}x{cols} w{warps} s{stages}"


def measure(smoke: bool, commit: str, finish: Callable[[dict], None]) -> Iterator[tuple[str, TileRow | str]]:
    """Every tile of every pass at every shape, then the peers; `finish` gets the table after each shape."""
    table = {
        "gpu": torch.cuda.get_device_name() if timing.DEVICE == "cuda" else "CPU",
        "date": conditions.now(), "commit": commit, "versions": conditions.versions(), "sparse_attention": [],
    }  # fmt: skip
    for shape in _shapes(smoke):
        entry = {"us": {}, "tiles": {}, "peer_us": {}}
        leaves, call = _call(shape)
        expected = tuple(x.detach() for x in call())
        yield from _passes(shape, smoke, leaves, call, expected, entry)
        yield from _peers(shape, smoke, expected, entry)
        if entry["tiles"].keys() == LAUNCHES.keys():
            table["sparse_attention"].append(_entry(ATTENTION_SHAPES[shape], entry))
            finish(table)


def _shapes(smoke: bool) -> tuple[str, ...]:
    return ("awkward",) if smoke else SHAPES


def _passes(shape: str, smoke: bool, leaves, call, expected, entry: dict) -> Iterator[tuple[str, TileRow | str]]:
    s = ATTENTION_SHAPES[shape]
    static = sparse_attention_config(s.head_dim, s.queries, s.keys, leaves[0].dtype)
    config = {name: (t["ROWS"], t["COLS"], t["num_warps"], t["num_stages"]) for name, t in static.items()}
    us = {}
    for pass_, launch in LAUNCHES.items():
        for tile in dict.fromkeys((config[pass_], *TILES)):

            def run(pass_=pass_, launch=launch, tile=tile) -> TileRow:
                with tuning.override(table_of(s, leaves[0].dtype, config | {pass_: tile})):
                    _compare(call(), expected)
                    with _only(launch):
                        took = _median(lambda: call(pass_ != "fwd"), smoke)
                us[pass_, tile] = took
                pairs = s.batch * s.queries * s.keys
                flops = sparse_attention_flops(pairs, s.heads, s.head_dim, backward=pass_ != "fwd")
                return TileRow(shape, pass_, label(tile), took, flops / (1 if pass_ == "fwd" else 2) / took / 1e6)

            yield f"tile {shape} {pass_} {label(tile)}", attempt(run)
        tried = {tile: took for (name, tile), took in us.items() if name == pass_}
        if tried:
            best = min(tried, key=tried.get)
            entry["tiles"][pass_], entry["us"][pass_] = list(best), tried[best]


def _peers(shape: str, smoke: bool, expected: tuple[Tensor, ...], entry: dict) -> Iterator[tuple[str, TileRow | str]]:
    """Those that run here and give what ours do; a peer's backward is one pass of five products."""
    benched = bench_sparse_attention.build(shape)
    for peer in PEERS:
        if peer not in benched.ways:
            continue
        times = {}
        for pass_ in ("fwd", "bwd"):

            def run(peer=peer, pass_=pass_, times=times) -> TileRow:
                out = benched.ways[peer](*benched.leaves)
                _compare((out, *torch.autograd.grad(out, benched.leaves, _upstream(out))), expected)
                times[pass_] = _median(benched.call(pass_, peer), smoke)
                return TileRow(shape, pass_, peer, times[pass_], benched.flops[pass_] / times[pass_] / 1e6)

            yield f"tile {shape} {pass_} {peer}", attempt(run)
        if peer in BACKENDS and len(times) == 2:
            entry["peer_us"][BACKENDS[peer]] = times


def _compare(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(found, expected):
        error = float((a.float() - b.float()).norm() / b.float().norm())
        if not error <= timing.BUDGETS[a.dtype].rms:
            raise timing.GateError(f"differs from the static tiles' result by {error:.2g}")


def _upstream(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator(out.device).manual_seed(1), device=out.device).to(out.dtype)


def _entry(s: AttentionShape, found: dict) -> dict:
    """One of the table: the fastest tiles, and the fastest peer where it is worth it."""
    us = {"fwd": found["us"]["fwd"], "bwd": found["us"]["dq"] + found["us"]["dkv"]}
    peers = {name: sum(times.values()) for name, times in found["peer_us"].items()}
    fastest = min(peers, key=peers.get, default=None)
    worth = fastest is not None and WORTH * peers[fastest] <= sum(us.values())
    return {
        "dtype": _short(timing.DTYPE), "head_dim": s.head_dim, "queries": s.queries, "keys": s.keys,
        "backend": fastest if worth else "triton", "tiles": found["tiles"], "us": us, "peer_us": found["peer_us"],
    }  # fmt: skip


def _short(dtype: torch.dtype) -> str:
    return next(name for name, known in tuning.DTYPES.items() if known == dtype)


def table_of(s: AttentionShape, dtype: torch.dtype, tiles: dict[str, tuple[int, ...]]) -> dict:
    """A table that has these tiles alone."""
    tiles = {pass_: list(tile) for pass_, tile in tiles.items()}
    lengths = {"dtype": _short(dtype), "head_dim": s.head_dim, "queries": s.queries, "keys": s.keys}
    return {"sparse_attention": [{**lengths, "backend": "triton", "tiles": tiles}]}


def _call(shape: str) -> tuple[tuple[Tensor, ...], Callable[..., tuple[Tensor, ...]]]:
    """q, k and v of the benchmark, and a function that runs the Triton kernels on them: out, dq, dk and dv; with
    backward=True backward alone, on the forward pass of before."""
    s, leaves = ATTENTION_SHAPES[shape], bench_sparse_attention.build(shape).leaves
    cu = torch.arange(s.batch + 1, dtype=torch.int32, device=timing.DEVICE)
    offsets = cu * s.queries, cu * s.keys

    def attend() -> Tensor:
        return sparse_attention(*leaves, *offsets, max_q=s.queries, max_k=s.keys, backend="triton")

    kept = attend()
    upstream = _upstream(kept)

    def call(backward: bool | None = None) -> tuple[Tensor, ...]:
        if backward is False:
            return (attend(),)
        out = kept if backward else attend()
        return out, *torch.autograd.grad(out, leaves, upstream, retain_graph=True)

    return leaves, call


@contextmanager
def _only(launch: str) -> Iterator[None]:
    """Launches of other passes are left out; what they had written lies where it lay, in blocks that are handed out
    again, so that dkv computes with numbers."""
    module = import_module("cinema_fast.kernels.sparse_attention")
    every = module._launch

    def some(name: str, *args):
        if name == launch:
            every(name, *args)

    with mock.patch.object(module, "_launch", some):
        yield


def _median(call: Callable[[], object], smoke: bool) -> float:
    """Microseconds."""
    clock = timing.Clock()
    with gpu_turn.turn():
        for _ in range(1 if smoke else timing.WARM_UP):
            clock.time(call)
        return statistics.median(clock.time(call) for _ in range(1 if smoke else ROUNDS)) * 1e6
