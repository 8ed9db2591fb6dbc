"""What a training step launches in eager: every operator that reaches the device, the bytes it moves and its FLOPs.

Counted by dispatch on fake CUDA tensors; the step is that of gpu_step.py. Operations of ours are one operator to
PyTorch: what they launch inside is recorded from their own launchers (`own_launches`).
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple
from unittest import mock

import audit_launches
import gpu_step
import torch
import workload
from audit_launches import Launch
from faked_gpu import faked_gpu, to_faked
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

import cinema_fast as cf
from cinema_fast.train.optimizer import update

OURS = "cinema_fast::"
COUNTED = ("aten::", OURS)
# allocate or look at tensors, without a kernel and without saying so in their schema
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
NOT_READ = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero_", "fill_"}
TWO_KERNELS = {"select_backward", "slice_backward"}  # zeros, and a copy into them
FOREACH = {  # lists walked side by side
    "_foreach_norm": 1, "_foreach_mul_": 1, "_foreach_add_": 1, "_foreach_sub_": 1, "_fused_adamw_": 4,
}  # fmt: skip
FOREACH_TENSORS = {1: 110, 4: 36}  # that one launch takes at most, by how many lists (ATen's MultiTensorApply.cuh)
FOREACH_BLOCKS, FOREACH_CHUNK = 320, 65536  # blocks of a launch, elements of a block


class Operator(NamedTuple):
    """An operator as it was called. n_bytes: that it must move, each tensor once; flops: of matrix products; launches:
    of kernels; call: of an operation of ours, its name and what it was given."""

    name: str
    n_bytes: int
    flops: int = 0
    launches: int = 1
    call: tuple | None = None


class TensorSpec(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Traffic(TorchDispatchMode):
    """Counts the operators that run on `device` ("cuda" or "cpu") inside the block, by what they are."""

    def __init__(self, device: str = "cuda"):
        super().__init__()
        self.device = device
        self.operators: Counter[Operator] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Runs the operator and counts it."""
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = function.name().split(".")[0]
        if not name.startswith(COUNTED):
            return out
        short = name.rpartition("::")[2]
        writes, reads = self._tensors(out), self._tensors((args, kwargs))
        if not self._is_view(function) and short not in NO_KERNEL and (writes or reads):
            reads = [] if short in NOT_READ else reads
            flops = flop_registry.get(function.overloadpacket)
            self.operators[
                Operator(
                    name,
                    sum(map(n_bytes, reads)) + sum(map(n_bytes, writes or self._mutated(function, args))),
                    int(flops(*args, **kwargs, out_val=out)) if flops else 0,
                    _launches(short, args),
                    _call(name, args, kwargs) if name.startswith(OURS) else None,
                )
            ] += 1
        return out

    def _tensors(self, values) -> list[Tensor]:
        return [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.device.type == self.device]

    def _mutated(self, function, args) -> list[Tensor]:
        """What an operator that gives nothing back writes into, as the fused optimiser does."""
        aliases = [argument.alias_info for argument in function._schema.arguments]
        return self._tensors([value for value, alias in zip(args, aliases) if alias and alias.is_write])

    @staticmethod
    def _is_view(function) -> bool:
        """Gives back what it was given, unwritten: no kernel."""
        returned = [r.alias_info for r in function._schema.returns]
        return bool(returned) and all(alias and not alias.is_write for alias in returned)


def n_bytes(tensor: Tensor) -> int:
    """Of its distinct elements: what is expanded is read once."""
    return math.prod(n for n, stride in zip(tensor.shape, tensor.stride()) if stride) * tensor.element_size()


def _launches(name: str, args: tuple) -> int:
    lists = FOREACH.get(name)
    if lists is None:
        return 2 if name in TWO_KERNELS else 1
    sizes = [x.numel() for x in args[0]]
    # the norms of a tensor's blocks are zeroed before, and added up after
    return foreach_launches(sizes, FOREACH_TENSORS[lists]) + 2 * (name == "_foreach_norm")


def foreach_launches(sizes: Iterable[int], most_tensors: int) -> int:
    """Of a multi-tensor operator over tensors of so many elements, as ATen packs them."""
    launches = tensors = blocks = 0
    for size in sizes:
        chunks = -(-size // FOREACH_CHUNK)
        tensors += bool(chunks)
        for chunk in range(1, chunks + 1):
            blocks += 1
            if blocks == FOREACH_BLOCKS or (tensors == most_tensors and chunk == chunks):
                launches, blocks = launches + 1, 0
                tensors = 0 if chunk == chunks else 1
    return launches + bool(blocks)


def _call(name: str, args: tuple, kwargs: dict) -> tuple:
    specify = tree_map_only(Tensor, lambda x: TensorSpec(tuple(x.shape), x.stride(), x.dtype), (args, kwargs))
    return name, _frozen(specify[0]), tuple(sorted(_frozen(specify[1]).items()))


def _frozen(value):
    """Lists as tuples, to be counted by."""
    if isinstance(value, dict):
        return {k: _frozen(v) for k, v in value.items()}
    if isinstance(value, list) or type(value) is tuple:
        return tuple(map(_frozen, value))
    return value


class OwnLaunch(NamedTuple):
    """A launch of a kernel of ours, and of how many programs."""

    launch: Launch
    programs: int


def own_launches(call: tuple, arch: int) -> tuple[list[OwnLaunch], Counter[Operator]]:
    """What an operation of ours launches for a `call`: its Triton kernels, and PyTorch's operators between them.

    Its launchers run on CPU tensors of the same shapes whose memory holds nothing; no kernel does.
    """
    name, args, kwargs = call

    def tensor(value):
        if isinstance(value, TensorSpec):
            return torch.empty_strided(value.shape, value.stride, dtype=value.dtype)
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return list(value) if type(value) is tuple else value

    programs, traffic = [], Traffic("cpu")
    run = audit_launches.JITFunction.run

    def noted(self, *given, grid, **how):
        programs.append(math.prod(grid))
        return run(self, *given, grid=grid, **how)

    def launch():
        with traffic:
            OPDEFS[name]._init_fn(*map(tensor, args), **{k: tensor(v) for k, v in kwargs})

    with mock.patch.object(audit_launches.JITFunction, "run", noted):
        found = audit_launches.launches_of(launch, arch)
    return [OwnLaunch(*pair) for pair in zip(found, programs, strict=True)], traffic.operators


class Step(NamedTuple):
    """Operators of a training step: of the model's forward and backward, and of all else (masks, clipping, update)."""

    model: Counter[Operator]
    rest: Counter[Operator]


class FakedStep:
    """A training step on the faked GPU, made of the parts that gpu_step and the training loop make theirs of."""

    def __init__(self, preset: str, batch: int, decode_ratio: float):
        self.config, self.batch, self.decode_ratio = workload.config_of(preset), batch, decode_ratio
        with torch.device("meta"):
            model = cf.CineMA(self.config)
        self.model = to_faked(model)
        self.optimizer = gpu_step.adamw(self.model)
        size = self.config.image_size
        self.images = {
            v: torch.empty(batch, self.config.in_chans[v], *size[v], device="cuda") for v in self.config.views
        }

    def masks(self) -> dict[str, cf.TokenPlan]:
        """Drawn for a step."""
        return workload.draw_plan(self.config, self.batch, decode_ratio=self.decode_ratio, device="cuda")

    def forward_backward(self, plan: dict[str, cf.TokenPlan]) -> Tensor:
        """The loss; gradients lie in the parameters."""
        return workload.forward_backward(self.model, lambda: self.model(self.images, plan).loss, torch.bfloat16)

    def update(self, loss: Tensor) -> None:
        """Clips and updates as the training loop does."""
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        update(self.optimizer, trained, loss, clip=gpu_step.CLIP)


def eager_step(preset: str, batch: int, decode_ratio: float) -> Step:
    """Of the second step: the first also makes the optimiser's state."""
    with faked_gpu():
        step = FakedStep(preset, batch, decode_ratio)
        step.update(step.forward_backward(step.masks()))
        model, rest = Traffic(), Traffic()
        with rest:
            plan = step.masks()
        with model:
            loss = step.forward_backward(plan)
        with rest:
            step.update(loss)
    return Step(model.operators, rest.operators)
