"""One training step: it updates the parameters from a batch, and the host reads nothing back."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..data.loading.batch import Batch
from .compile import compile_model
from .graph import Capture, GraphedStep
from .ranks import ALONE, Ranks, sum_later

Loss = Callable[[nn.Module, Batch, Tensor], Tensor]
Update = Callable[[torch.optim.Optimizer, Sequence[nn.Parameter], Tensor, Tensor], Tensor]


class _LossModule(nn.Module):
    """A model with its loss, so that DDP sees every parameter that the loss depends on."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Batch, step: Tensor) -> Tensor:
        return self._loss(self.model, batch, step)


def make_train_step(
    loss: Loss,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    device: torch.device,
    update: Update,
    seed: int = 0,
    ranks: Ranks = ALONE,
    sharded: bool = False,
    unused: bool = False,
    compiled: bool = False,
    capture: Capture | None = None,
    after_update: Callable[[nn.Module, Tensor, Tensor], None] | None = None,
) -> Callable[[Sequence[Batch], int, float], Tensor]:
    """The training step as a function of (micro-batches, step, learning rate).

    loss, update, after_update: as in `Method`.
    seed: PyTorch's generators, used by dropout and drop path, are seeded for each micro-batch with it, the step and the
        number of the micro-batch among those of all ranks; in a captured step only for the first one.
    ranks: they train together, each on its part of a step. sharded: `model` is sharded (`ranks.shard_model`).
    unused: not every parameter has a gradient in every step.
    compiled: run the model through torch.compile, as one graph of fixed shapes for each set of views.
    capture: record the whole step by it, a `graph.CudaCapture`, and replay it.

    The step returns a (3,) float32 tensor on the device: loss (the mean over all ranks), gradient norm before clipping,
    and 1 where the update was made or 0 where loss or norm is not finite; then parameters and optimiser do not change.
    The fused optimiser takes clipping and skipping as tensors, so the host does not wait.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    called = _LossModule(compile_model(model) if compiled else model, loss)
    called = called if sharded else ranks.average_gradients(called, unused=unused)
    number, at = torch.zeros(1, dtype=torch.int64, device=device), 0
    # the dtype that a GPU's fused AdamW reads; on a CPU that of a Python number
    kind = torch.float32 if device.type == "cuda" else torch.float64
    rates = [torch.zeros((), dtype=kind, device=device) for _ in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates):  # including groups from a checkpoint of another mode
        group["lr"], group["capturable"] = rate, device.type == "cuda"
        group.setdefault("lr_scale", 1.0)  # checkpoints of older versions lack it

    def work(batches: Sequence[Batch]) -> Tensor:
        total = torch.zeros((), device=device)
        for micro, batch in enumerate(batches):
            if not capture:
                start_generators(micro)
            with sum_later(model if sharded else called, last=micro == len(batches) - 1):
                part = called(batch, number) / len(batches)
                part.backward()
            total += part.detach()
        ranks.mean_(total)
        result = update(optimizer, trained, total, number)
        if after_update:
            after_update(model, number, result[2])
        return result

    def start_generators(micro: int) -> None:
        words = np.random.SeedSequence([seed, at, micro * ranks.world + ranks.rank]).generate_state(2, np.uint32)
        high, low = words.tolist()
        torch.manual_seed(high << 31 | low >> 1)

    step_of = GraphedStep(work, capture) if capture else work

    def train_step(batches: Sequence[Batch], step: int, lr: float) -> Tensor:
        nonlocal at
        at = step
        start_generators(0)
        number.fill_(step)
        for group, rate in zip(optimizer.param_groups, rates):
            rate.fill_(lr * group["lr_scale"])
        return step_of([batch.to(device) for batch in batches])

    return train_step
