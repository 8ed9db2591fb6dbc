"""Compiles models by torch.compile, with PyTorch's cache of compiled code on disk."""

import hashlib
from pathlib import Path

import torch
import torch._functorch.config
import torch._inductor.config
from torch import nn

from .. import kernels

VIEW_SETS = 64  # more than there are sets of views, each of which is compiled separately


def compile_model(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """The model as one compiled graph of fixed shapes for each set of views; backend: as for torch.compile."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VIEW_SETS)
    _keep_compiled_code()
    return torch.compile(model, fullgraph=True, dynamic=False, backend=backend)


def _keep_compiled_code() -> None:
    """Make PyTorch's cache on disk keep these graphs too, forward and backward; a later process then only traces them.

    By default the cache skips graphs with autograd functions or autocast blocks. Here the traced graph, which is the
    key, contains all that these do. It does not contain the backward passes of the custom operations. A digest of their
    sources is therefore added to the key, so that a changed backward never gets the code of an older one.
    """
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    blocks = ("_enter_autocast", "_exit_autocast")
    torch._inductor.config.unsafe_marked_cacheable_functions |= {f"torch.amp.autocast_mode.{b}": "1" for b in blocks}
    digest = source_digest(Path(kernels.__file__).parent)
    if digest not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += digest


def source_digest(folder: Path) -> str:
    """SHA-256, in hex, of names and contents of the Python files in a folder and in those below it."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
