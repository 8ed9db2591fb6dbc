"""The kernels of csrc/optical_flow.cu without a GPU: compiled for the CPU with cuda_on_cpu.h."""

import ctypes
import platform
import shutil

import pytest
import torch
from flow_cases import CSRC, compile_with

from cinema_fast.kernels.optical_flow import FlowParams, cuda_form
from cinema_fast.kernels.optical_flow.pair_groups import pair_groups


class OnCpu:
    """A CuPy module's face over kernels compiled for the CPU; notes what is launched, and numbers that were given."""

    def __init__(self, library: ctypes.CDLL):
        self.library, self.launched, self.given = library, [], set()

    def get_function(self, name):
        def launch(grid, block, args, *, shared_mem=0):
            assert all(0 < n <= limit for n, limit in zip(grid, (2**31 - 1, 65535, 65535)))
            assert shared_mem <= 48 * 1024
            self.launched.append(name)
            self.given.update(map(int, args))
            words = (ctypes.c_long * 20)(*(int(a) for a in args))
            three = [(ctypes.c_int * 3)(*n, *[1] * (3 - len(n))) for n in (grid, block)]
            self.library.launch(getattr(self.library, name), words, *three, shared_mem)

        return launch


def for_cpu(source, folder):
    """A .cu file's kernels compiled for the CPU."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64") or not shutil.which("g++"):
        pytest.skip("needs g++ on 64-bit Linux: kernels get their arguments by its calling convention")
    header = CSRC.parent / "tests" / "support" / "cuda_on_cpu.h"
    compile_with(
        "g++", "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-include", header, "-x", "c++", source,
        "-o", folder / "kernels.so",
    )  # fmt: skip
    return ctypes.CDLL(str(folder / "kernels.so"))


def flow_by_kernels(frames, pairs, dtype=torch.float32, **how):
    """As the registered operator calls them; the result and the workspace start as NaN."""
    out = torch.full((frames.shape[0], len(pairs), 2, *frames.shape[2:]), torch.nan, dtype=dtype)
    cuda_form.run_cuda(frames.contiguous(), out, [t for pair in pairs for t in pair], FlowParams(**how))
    return out


def map_by_kernels(frames, pairs, tubelet=None, **how):
    groups = pair_groups(tuple(pairs), frames.shape[1], tubelet)
    out = torch.full((len(frames), groups.count, *frames.shape[2:]), torch.nan)
    pairs = [t for pair in pairs for t in pair]
    cuda_form.run_cuda(frames.contiguous(), out, pairs, FlowParams(**how), groups)
    return out.squeeze(1) if tubelet is None else out


