"""What a CUDA graph does, on a CPU: it records which operations ran on which tensors, and does them again.

As with a graph, values that the host had at the time are part of the recording, and everything else is read anew from
where it lay.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Records every operation inside of the block."""

    def __init__(self):
        super().__init__()
        self.recorded = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.recorded.append((operator, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Do it all again, each result in its old place."""
        with torch.no_grad():
            for operator, args, kwargs, result in self.recorded:
                for place, value in zip(tree_leaves(result), tree_leaves(operator(*args, **kwargs)), strict=True):
                    if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                        place.copy_(value)


class TapeCapture:
    """What stands for `CudaCapture`; after a capture `state` (parameters, what the optimiser keeps) is as before, and
    PyTorch's generator."""

    def __init__(self, state: Callable[[], list[Tensor]]):
        self.state = state

    def warm_up(self, work):
        return work()

    def __call__(self, work):
        before, drawn = [tensor.detach().clone() for tensor in self.state()], torch.get_rng_state()
        with Tape() as tape:
            result = work()
        with torch.no_grad():
            for tensor, value in zip(self.state(), before, strict=True):
                tensor.copy_(value)
        torch.set_rng_state(drawn)
        return tape.replay, result
