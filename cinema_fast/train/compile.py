"""Models through torch.compile, and PyTorch's cache of compiled code on disk."""

import hashlib
from pathlib import Path

import torch
import torch._functorch.config
import torch._inductor.config
from torch import nn

from .. import kernels

VIEW_SETS = 64  # more than there are sets of views: each is compiled by itself


def compile_model(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """The model as one compiled graph for each set of views, its shapes fixed; `backend` as torch.compile takes it."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VIEW_SETS)
    _keep_compiled_code()
    return torch.compile(model, fullgraph=True, dynamic=False, backend=backend)


def _keep_compiled_code() -> None:
    """PyTorch's cache on disk also keeps these graphs, forward and backward: a later process only traces them.

    By default it passes over graphs with autograd functions or autocast blocks. Here the traced graph, which is the
    key, holds all that they do. Backward passes of the custom operations it does not hold, so the key gets a digest of
    their sources: a backward that was changed is never answered by an older one's code.
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
