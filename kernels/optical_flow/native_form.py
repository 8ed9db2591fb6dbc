"""Optical flow through the C library that `setup.py` builds from csrc/optical_flow_cpu.cpp."""

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from ..native import load_library
from .pair_groups import PairGroups
from .params import FlowParams
from .pyramid import AxisTaps, half_filters, pyramid, used_frames

NON_FINITE = 1  # a return code of the library, as in csrc/optical_flow_cpu.cpp
NON_FINITE_TEXT = "optical_flow: frames must be finite, got NaN or infinity"


class _Taps(ctypes.Structure):
    _fields_ = (("taps", ctypes.c_int), ("index", ctypes.c_void_p), ("weight", ctypes.c_void_p))


class _Level(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_int),
        ("y", ctypes.c_int),
        ("image_x", _Taps),
        ("image_y", _Taps),
        ("flow_x", _Taps),
        ("flow_y", _Taps),
    )


class _Request(ctypes.Structure):
    """The same fields as `Request` in csrc/optical_flow_cpu.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("frames", "out", "used", "pairs", "levels", "filters")),
        *((name, ctypes.c_void_p) for name in ("begin", "members", "shares")),
        *((name, ctypes.c_int64) for name in ("b", "t", "x", "y", "z", "f", "p", "g")),
        *((name, ctypes.c_int) for name in ("item_size", "out_size", "n_levels", "iterations", "window", "poly_n")),
        *((name, ctypes.c_int) for name in ("refine", "threads")),
    )


@lru_cache(maxsize=16)
def _c_levels(size: tuple[int, int], levels: int, pyr_scale: float) -> tuple[ctypes.Array, list[Tensor]]:
    """The pyramid as the C library takes it, and the tensors whose memory it points to."""
    memory: list[Tensor] = []

    def pointers(taps: AxisTaps) -> _Taps:
        index, weight = taps.index, taps.weight.float()
        memory.extend((index, weight))
        return _Taps(len(index), index.data_ptr(), weight.data_ptr())

    levels_ = pyramid(size, levels, pyr_scale)
    none = (_Taps(), _Taps())
    rows = [
        _Level(*level.size, *map(pointers, level.image), *(map(pointers, level.flow) if level.flow else none))
        for level in levels_
    ]
    return (_Level * len(rows))(*rows), memory


def run_native(
    frames: Tensor, out: Tensor, pairs: list[int], params: FlowParams, groups: PairGroups | None = None
) -> None:
    """Computes the flow of contiguous `frames` into `out` (B, P, 2, X, Y[, Z]) float32 or float16. With `groups` `out`
    is (B, G, X, Y[, Z]) float32 and receives the mean magnitude of the flow over each of the G groups of pairs. It runs
    on as many threads as torch uses.

    Raises:
        ValueError: a frame that a pair names is not finite. MemoryError: no room for the expansions.
    """
    b, t, x, y, *z = frames.shape
    used, places = (torch.tensor(values, dtype=torch.int32) for values in used_frames(pairs))
    c_levels, _ = _c_levels((x, y), params.levels, params.pyr_scale)
    filters, groups = half_filters(params.poly_n, params.poly_sigma), groups or PairGroups((0,), (), ())
    begin, members = (torch.tensor(values, dtype=torch.int32) for values in (groups.begin, groups.members))
    shares = torch.tensor(groups.shares, dtype=torch.float32)
    request = _Request(
        frames.data_ptr(), out.data_ptr(), used.data_ptr(), places.data_ptr(), ctypes.addressof(c_levels),
        filters.data_ptr(), begin.data_ptr(), members.data_ptr(), shares.data_ptr(), b, t, x, y, z[0] if z else 1,
        len(used), len(pairs) // 2, groups.count, frames.element_size(), out.element_size(), len(c_levels),
        params.iterations, params.window, params.poly_n, params.refine, torch.get_num_threads(),
    )  # fmt: skip
    library, _ = load_library("optical_flow")
    status = library.cinema_fast_optical_flow(ctypes.byref(request))
    if status == NON_FINITE:
        raise ValueError(NON_FINITE_TEXT)
    if status:
        raise MemoryError(f"optical_flow: no memory for the expansions of {len(used)} frames of {x} x {y}")
