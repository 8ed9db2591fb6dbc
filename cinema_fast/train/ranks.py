"""Distributed training under `torchrun`, a process per device: DDP, FSDP2, and decisions shared by the ranks.

Each rank reads its own part of every step's samples, and gradients are averaged: up to rounding, the steps are those of
one process with as large a batch. Decisions of the host (stop now?) are shared through a separate group on the CPU, so
that no device is waited for.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..common.naming import counted

# the other ranks wait at most this long while the main rank writes a huge model's checkpoint to a slow disk
PATIENCE = timedelta(minutes=30)


STARTED_BY = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them besides RANK


@contextmanager
def joined_ranks() -> Iterator["Ranks"]:
    """The ranks that `torchrun` started, which can communicate in the block; without torchrun a single rank."""
    if "RANK" not in os.environ:
        yield Ranks()
        return
    if missing := [name for name in STARTED_BY if name not in os.environ]:
        raise ValueError(
            f"RANK is set, so other processes are to train with this one, but {', '.join(missing)} is not: start them "
            "by torchrun, or unset RANK"
        )
    store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # torchrun restarts ranks on the same store, which still holds the addresses of dead ranks; machines that train
        # together may have restarted a different number of times, and then need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    places = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    yield Ranks(*places, hosts=dist.new_group(backend="gloo", timeout=PATIENCE))
    dist.destroy_process_group()  # not after an error, since the other ranks might never reach it


@dataclass(frozen=True)
class Ranks:
    """rank: of this process among `world`. local: its rank on its machine. hosts: a group on the CPU, None for a single
    rank."""

    rank: int = 0
    local: int = 0
    world: int = 1
    hosts: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this is the main rank, which writes files and messages."""
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """The device of this rank; ValueError where its machine has fewer devices than ranks."""
        if device.type != "cuda" or not self.hosts:
            return device
        if self.local >= torch.cuda.device_count():
            has = torch.cuda.device_count()
            raise ValueError(f"rank {self.rank} (local rank {self.local}) has no GPU: this machine has "
                             f"{counted(has, 'GPU')}. Start one process per GPU (--nproc-per-node {has})")
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def from_main(self, value: float) -> float:
        """The main rank's value, on all ranks."""
        if not self.hosts:
            return value
        values = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(values, 0, self.hosts)
        return float(values)

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.hosts:
            dist.barrier(self.hosts)

    def most(self, value: int) -> int:
        """The largest of the ranks' values."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def sum(self, value: int) -> int:
        """The sum of the ranks' values."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def _reduced(self, value: int, how: dist.ReduceOp) -> int:
        if not self.hosts:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, how, group=self.hosts)
        return int(values)

    def mean_(self, value: Tensor) -> Tensor:
        """The mean over the ranks of a tensor on the device, in place; the host does not wait."""
        if self.hosts:
            dist.all_reduce(value)
            value /= self.world
        return value

    def average_gradients(self, called: nn.Module, *, unused: bool) -> nn.Module:
        """DDP around a module where there are other ranks. unused: not every parameter has a gradient in every step."""
        if not self.hosts:
            return called
        # the warning is about axes of length one, whose strides mean nothing; other gradients have their parameter's
        # layout
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        # only the running statistics of batch norms differ between ranks; other buffers need not be sent
        differ = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in called.modules())
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # older versions lack the new name
        return nn.parallel.DistributedDataParallel(called, find_unused_parameters=unused, broadcast_buffers=differ)


ALONE = Ranks()


class Agreement:
    """The largest of the ranks' values, exchanged after every step without waiting: all ranks get it one step later, in
    the same step. A single process gets it at once."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._begun: tuple[dist.Work, Tensor] | None = None

    def after(self, value: int, *, last: bool) -> int:
        """The largest of the ranks' values of the previous step, 0 after the first step. All ranks call it after each
        step, until the last step or a result other than 0; then no exchange is pending."""
        if not self._ranks.hosts:
            return value
        agreed = 0
        if self._begun:
            sending, values = self._begun
            sending.wait()
            self._begun, agreed = None, int(values)
        if not (last or agreed):
            values = torch.tensor([value])
            self._begun = dist.all_reduce(values, dist.ReduceOp.MAX, self._ranks.hosts, async_op=True), values
        return agreed


def shard_model(model: nn.Module, units: Sequence[nn.Module], ranks: Ranks, device: torch.device) -> None:
    """FSDP2: every rank holds a part of each trained parameter. Each of `units` is gathered separately when it runs,
    and all other parameters at once.

    Parameters that are not trained stay whole on every rank. In pre-training these are the position tables: they have
    one row, so a single rank would hold all of it and send it to the others.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks.world,))
    frozen = {p for p in model.parameters() if not p.requires_grad}
    for unit in (*units, model):
        fully_shard(unit, mesh=mesh, ignored_params=frozen)


def sum_later(called: nn.Module, last: bool) -> AbstractContextManager:
    """Context for the backward pass of a micro-batch: gradients are averaged over the ranks only in the `last` one."""
    if isinstance(called, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else called.no_sync()
    if hasattr(called, "set_requires_gradient_sync"):
        called.set_requires_gradient_sync(last)
    return nullcontext()
