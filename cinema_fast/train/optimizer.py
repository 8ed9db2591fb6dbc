"""AdamW as in the published recipes: parameter groups, learning-rate schedule, and updates that may be skipped on the
device."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)


class Group(TypedDict):
    """Parameters that share a weight decay; lr_scale: their share of the learning rate."""

    params: list[nn.Parameter]
    weight_decay: float
    lr_scale: float


def groups_of(
    model: nn.Module, *, weight_decay: float, scale_of: Callable[[str], float] = lambda _: 1.0
) -> list[Group]:
    """The trained parameters of a model; 1-D ones have no weight decay. scale_of: share of the rate by name."""
    groups: dict[tuple[float, float], Group] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale, decay = scale_of(name), weight_decay if parameter.ndim > 1 else 0.0
            fresh = Group(params=[], weight_decay=decay, lr_scale=scale)
            groups.setdefault((scale, decay), fresh)["params"].append(parameter)
    return list(groups.values())


def adamw(groups: Sequence[Group], *, lr: float) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.95; fused, so that tensors on the device can scale and skip the update."""
    return torch.optim.AdamW(list(groups), lr=lr, betas=BETAS, fused=True)


def cosine_schedule(steps: int, *, peak: float, floor: float, warmup: int) -> np.ndarray:
    """Linear warm-up to `peak`, then half a cosine down to `floor`.

    Step warmup - 1 is at the peak and step steps - 1 at the floor, so no step is wasted at rate 0. The reference's
    recipe is 1e-3 to 1e-6 with 10 of 800 epochs of warm-up (Fu et al., "A versatile foundation model for cine CMR").

    Returns (steps,) float64. Raises ValueError for no steps, or a warm-up that is negative or longer than the run.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= warmup <= steps:
        raise ValueError(f"warm-up must lie in 0..{steps} (the steps of the run), got {warmup}")
    done = np.arange(1, steps + 1)
    decay = np.clip((done - warmup) / max(steps - warmup, 1), 0, 1)
    cosine = floor + (peak - floor) * 0.5 * (1 + np.cos(np.pi * decay))
    return np.where(done <= warmup, peak * done / max(warmup, 1), cosine)


def update(
    optimizer: torch.optim.Optimizer,
    trained: Sequence[nn.Parameter],
    loss: Tensor,
    *,
    clip: float,
    sharded: bool = False,
) -> Tensor:
    """Clip the gradients, make the update unless loss or norm is not finite, and drop the gradients; for fused
    optimisers.

    Returns (3,) float32 on the device, as the steps of `step.make_train_step`. sharded: `trained` are shards.
    """
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    norm = norm.full_tensor() if sharded else norm
    made = (loss.isfinite() & norm.isfinite()).float()
    optimizer.grad_scale = (norm / clip).clamp(min=1.0)
    optimizer.found_inf = 1.0 - made
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack([loss, norm, made])
