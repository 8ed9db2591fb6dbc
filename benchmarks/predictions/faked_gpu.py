"""A GPU that is not there: what runs on it sees CUDA tensors that have shapes and no memory, and launches nothing.

PyTorch asks for a device in three places: its Python functions in torch.cuda, which are replaced; the guard that every
operator sets before it runs, for which the one of PyTorch's "meta" device, which does nothing, is put; and the threads
of its backward pass (python_backward.py). A build for the CPU will do.
"""

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch._subclasses.fake_tensor as fake_tensor
from python_backward import python_backward
from torch import nn
from torch.utils import _foreach_utils

CUDA, META, KINDS = 1, 14, 20  # of c10::DeviceType
GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
PROPERTIES = SimpleNamespace(  # of an H100 SXM and an H200; the driver's figures as PyTorch names them
    name="faked sm_90", major=9, minor=0, multi_processor_count=132, warp_size=32, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, shared_memory_per_block=48 * 1024, shared_memory_per_block_optin=227 * 1024,
    shared_memory_per_multiprocessor=228 * 1024, L2_cache_size=50 * 2**20, total_memory=80 * 2**30, gcnArchName="",
    is_integrated=0, is_multi_gpu_board=0,
)  # fmt: skip


@contextmanager
def faked_gpu() -> Iterator[None]:
    """Inside there is one GPU, and every tensor made is fake. RuntimeError where PyTorch cannot be deceived, or is at
    work on a real one."""
    if torch.cuda.is_initialized():
        raise RuntimeError("a GPU is faked in a process that uses a real one: run it in a process of its own")
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True, "_lazy_init": None,
        "is_current_stream_capturing": False, "_get_device_properties": PROPERTIES, "synchronize": None,
        "_exchange_device": 0, "_maybe_exchange_device": 0, "set_device": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
    }  # fmt: skip
    with ExitStack() as stack:
        for name, answer in answers.items():
            always = mock.Mock(return_value=answer)
            stack.enter_context(mock.patch.object(torch.cuda, name, always, create=True))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda device: None))
        kinds = [*_foreach_utils._foreach_supported_types, fake_tensor.FakeTensor]
        stack.enter_context(mock.patch.object(_foreach_utils, "_foreach_supported_types", kinds))
        stack.enter_context(_no_guard())
        stack.enter_context(python_backward())
        stack.enter_context(fake_tensor.FakeTensorMode(allow_non_fake_inputs=True))
        yield


@contextmanager
def _no_guard() -> Iterator[None]:
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    try:
        guards = (ctypes.c_void_p * KINDS).in_dll(ctypes.CDLL(str(library)), GUARDS)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"no GPU can be faked: PyTorch {torch.__version__} keeps its guards elsewhere") from error
    before, guards[CUDA] = guards[CUDA], guards[META]
    try:
        yield
    finally:
        guards[CUDA] = before


def to_faked(model: nn.Module) -> nn.Module:
    """A model of the "meta" device, its parameters on the faked GPU."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = nn.Parameter(torch.empty_like(parameter, device="cuda"), requires_grad=parameter.requires_grad)
            setattr(module, name, fake)
    return model
