"""Finds and loads what `setup.py` built from csrc/: C libraries for the CPU, CUDA modules for the GPU.

For an operation NAME, setup.py builds the library kernels/_NAME_cpu.so if there is a C++ compiler, and the fat binary
kernels/_NAME_cuda.fatbin if there is nvcc. Without the fat binary, or where the GPU or its driver is too old for it,
CuPy compiles csrc/NAME.cu by NVRTC at first use.
"""

import ctypes
import warnings
from functools import lru_cache
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"
NVRTC_OPTIONS = ("--std=c++17", f"-I{CSRC}", "-lineinfo")


@lru_cache
def load_library(operation: str) -> tuple[ctypes.CDLL | None, str]:
    """(library, "") or (None, why it is not there)."""
    path = HERE / f"_{operation}_cpu.so"
    if not path.exists():
        return None, f"{path.name} was not built: install a C++ compiler, then install this package again"
    try:
        return ctypes.CDLL(str(path)), ""
    except OSError as error:
        return None, f"{path.name} does not load: {error}"


@lru_cache
def _cupy_problem() -> str:
    try:
        import cupy
    except Exception as error:  # ImportError where it is not installed, other errors where its libraries do not fit
        return f"CuPy does not import ({error}): pip install 'cinema-fast[gpu]'"
    if not hasattr(cupy.cuda.Stream, "from_external"):
        return f"CuPy {cupy.__version__} cannot launch on torch's stream: needs 14 or newer"
    return "" if cupy.cuda.is_available() else "CuPy finds no GPU"


def cuda_unsupported(*tensors: torch.Tensor) -> list[str]:
    """Why CUDA kernels of csrc/ cannot run on these tensors; empty where they can."""
    if not all(t.is_cuda for t in tensors):
        return [f"needs CUDA tensors, got {tensors[0].device.type}"]
    return [problem] if (problem := _cupy_problem()) else []


def native_unsupported(operation: str, *tensors: torch.Tensor) -> list[str]:
    """Why the C library of an operation cannot run on these tensors; empty where it can."""
    if not all(t.device.type == "cpu" for t in tensors):
        return [f"needs CPU tensors, got {tensors[0].device.type}"]
    return [problem] if (problem := load_library(operation)[1]) else []


def cuda_module(operation: str):
    """CuPy's module of an operation's kernels, for the current device."""
    import cupy

    return _cuda_module(operation, cupy.cuda.Device().id)


@lru_cache
def _cuda_module(operation: str, device: int):
    import cupy

    binary = HERE / f"_{operation}_cuda.fatbin"
    if binary.exists():
        try:
            module = cupy.RawModule(path=str(binary))
            module.compile()  # loads it now; CuPy would do so only at the first launch
            return module
        except cupy.cuda.driver.CUDADriverError as error:
            said = f"{binary.name} does not load on GPU {device} ({error}): {operation}.cu is compiled instead"
            warnings.warn(said, stacklevel=3)
    return cupy.RawModule(code=(CSRC / f"{operation}.cu").read_text(), options=NVRTC_OPTIONS, backend="nvrtc")
