"""Tables of the fastest backends and tiles measured on a GPU: tuned/<gpu>.json, from benchmarks/gpu/gpu_first.py.

A table is a JSON object: "gpu" (the device's name), "date", "commit", "versions", and "sparse_attention", a list of
entries. An entry was measured for sequences that are all equally long, and holds
    "dtype" ("bf16", "fp16", "fp32"), "head_dim", "queries", "keys": of each sequence
    "backend": the fastest one
    "tiles": {"fwd", "dq", "dkv": [ROWS, COLS, warps, stages]}: the kernels' fastest, of those tried
    "us", "peer_us": times of "backend" and of the one it was compared with; for information only
"backend", "tiles", and each pass in "tiles" may be missing. Without a table, or without an entry that applies, an
operation uses its own static choice.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from .attention_peers import PEERS

FOLDER = Path(__file__).parent / "tuned"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BACKENDS = ("triton", *PEERS)
PASSES = ("fwd", "dq", "dkv")
KEYS = ("dtype", "head_dim", "queries", "keys", "backend", "tiles", "us", "peer_us")
SIDES, WARPS, STAGES = (16, 32, 64, 128, 256), (4, 8), range(1, 8)
NEAR = 1.25  # an entry's backend is used for lengths that differ by no more than this factor

Tile = tuple[int, int, int, int]
_tried: dict | None = None  # the table that `override` set


def slug(gpu: str) -> str:
    """The stem of a GPU's table: nvidia-h200 for "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def read(path: Path) -> dict:
    """Read a table. ValueError, which names the file and the cure, where it is malformed; FileNotFoundError."""
    try:
        table = json.loads(path.read_text())
        _check(table)
        if not isinstance(table.get("gpu"), str):
            raise ValueError(f'"gpu" must be the name of a device, got {table.get("gpu")!r}')
    except ValueError as error:  # errors of JSON and of Unicode too
        cure = "delete it, or let benchmarks/gpu/gpu_first.py write it again"
        raise ValueError(f"{path}: not a table of tuned kernels ({error}); {cure}") from error
    return table


@contextmanager
def override(table: dict) -> Iterator[None]:
    """Inside this block, all devices use this table, of the form above; "gpu", "date", ... may be missing.

    A backward pass reads the table when it runs. Code that was compiled before keeps its backend. ValueError where the
    table is malformed.
    """
    global _tried
    _check(table)
    before, _tried = _tried, table
    try:
        yield
    finally:
        _tried = before


def tiles(head_dim: int, queries: int, keys: int, dtype: torch.dtype, gpu: str | None) -> dict[str, Tile]:
    """Tiles of sparse_attention by pass, for the passes that the table has; empty without a table.

    They come from the entry with this head dim and dtype whose lengths are nearest: with the least sum of |log ratio|
    over both lengths.
    """
    entry = _nearest(head_dim, queries, keys, dtype, gpu, "tiles")
    return {name: tuple(tile) for name, tile in entry["tiles"].items()} if entry else {}


def backend(head_dim: int, queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """The fastest backend for sequences that are all equally long; None where no table has one.

    It is the backend of the nearest entry, as for `tiles`, if each length is within a factor of NEAR of the entry's. In
    compiled code it is a constant, and so are the three sizes.
    """
    if not has_table(device):  # otherwise every new length would be compiled again
        return None
    sizes = (len(range(size)) for size in (head_dim, queries, keys))  # makes a symbolic size a number
    return _backend(*sizes, dtype, device) or None


def gpu_of(device: torch.device) -> str | None:
    """The name of a CUDA device; None for others."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def has_table(device: torch.device) -> bool:
    """Whether a table was measured on this device, or is set by `override`."""
    return _tried is not None or ((gpu := gpu_of(device)) is not None and _path(FOLDER, gpu).exists())


def _backend(head_dim: int, queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> str:
    entry = _nearest(head_dim, queries, keys, dtype, gpu_of(device), "backend")
    near = entry and max(_apart(entry["queries"], queries), _apart(entry["keys"], keys)) <= math.log(NEAR)
    return entry["backend"] if near else ""


# as torch.compiler.assume_constant_result does, which would import torch._dynamo: two seconds of every command
has_table._dynamo_marked_constant = _backend._dynamo_marked_constant = True


def _nearest(head_dim: int, queries: int, keys: int, dtype: torch.dtype, gpu: str | None, wanted: str) -> dict | None:
    table = _tried if _tried is not None else _table(FOLDER, gpu) if gpu else None
    entries = [
        entry
        for entry in (table or {}).get("sparse_attention", ())
        if wanted in entry and entry["head_dim"] == head_dim and DTYPES[entry["dtype"]] == dtype
    ]
    return min(entries, key=lambda e: _apart(e["queries"], queries) + _apart(e["keys"], keys), default=None)


def _apart(a: int, b: int) -> float:
    return abs(math.log(max(a, 1) / max(b, 1)))


@cache
def _table(folder: Path, gpu: str) -> dict | None:
    path = _path(folder, gpu)
    table = read(path) if path.exists() else None
    if table and table["gpu"] != gpu:
        raise ValueError(f"{path}: is for {table['gpu']}, not {gpu}; delete it, or let gpu_first.py write it again")
    return table


def _path(folder: Path, gpu: str) -> Path:
    return folder / f"{slug(gpu)}.json"


def _check(table) -> None:
    """ValueError where a required value is missing or invalid."""
    if not isinstance(table, dict) or not isinstance(table.get("sparse_attention"), list):
        raise ValueError('expected an object with a list "sparse_attention"')
    for number, entry in enumerate(table["sparse_attention"]):
        where = f"sparse_attention[{number}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected an object, got {entry!r}")
        for name in entry:
            _one_of(f"{where}: key", name, KEYS)
        _one_of(f"{where}: dtype", entry.get("dtype"), tuple(DTYPES))
        for name in ("head_dim", "queries", "keys"):
            _one_of(f"{where}: {name}", entry.get(name), range(1, 2**31))
        if "backend" in entry:
            _one_of(f"{where}: backend", entry["backend"], BACKENDS)
        if "tiles" in entry:
            _check_tiles(f"{where}: tiles", entry["tiles"])


def _check_tiles(where: str, tiles) -> None:
    if not isinstance(tiles, dict):
        raise ValueError(f"{where}: expected an object, got {tiles!r}")
    for name, tile in tiles.items():
        _one_of(where, name, PASSES)
        if not isinstance(tile, list | tuple) or len(tile) != 4:
            raise ValueError(f"{where}: {name}: expected [ROWS, COLS, warps, stages], got {tile!r}")
        for value, allowed in zip(tile, (SIDES, SIDES, WARPS, STAGES)):
            _one_of(f"{where}: {name}", value, allowed)


def _one_of(where: str, value, allowed: tuple | range) -> None:
    if type(value) is not type(allowed[0]) or value not in allowed:
        some = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
        raise ValueError(f"{where}: {value!r} (expected {some})")
