"""The update of DINO's student: AdamW, each gradient clipped by its own norm, the prototypes frozen at first."""

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

NORM_EPS = 1e-6  # as in the public code's clipping


class DINOOptimizer(torch.optim.AdamW):
    """Fused AdamW over the parameters of a student. Vectors (biases, norms) have no weight decay.

    All numbers of a step may be tensors () on the device, which are not read back, so that schedules can run on the
    device and a step can be recorded.
    """

    def __init__(self, student: nn.Module, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in student.named_parameters():
            if parameter.requires_grad:
                kind = parameter.ndim > 1, "last_layer" in name
                groups.setdefault(kind, []).append(parameter)
        super().__init__(
            [{"params": p, "decayed": decayed, "last_layer": last} for (decayed, last), p in groups.items()],
            lr=0.0, betas=betas, eps=eps, weight_decay=0.0, fused=True,
        )  # fmt: skip

    @torch.no_grad()
    def step(
        self,
        *,
        lr: float | Tensor,
        weight_decay: float | Tensor,
        clip: float,
        freeze_last_layer: bool | Tensor = False,
        loss: Tensor | None = None,
    ) -> Tensor:
        """Update the parameters from their gradients, which are changed.

        Args:
            lr, weight_decay: of this step; an lr in a tensor on a GPU is float32. clip: largest norm of the gradient of
                a parameter.
            freeze_last_layer: leave the prototypes and their moments as they are.
            loss: if given, nothing is updated where it or a gradient is not finite.

        Returns:
            (2,) float32 on the device: the norm of all gradients before clipping, and 1 where the update was made.

        Raises:
            ValueError: a number out of range, or no parameter with a gradient.
        """
        if not clip > 0:
            raise ValueError(f"DINOOptimizer.step: clip must be above 0, got {clip}")
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not isinstance(value, Tensor) and not value >= 0:
                raise ValueError(f"DINOOptimizer.step: {name} must be at least 0, got {value}")
        given = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if not any(given):
            raise ValueError("DINOOptimizer.step: no parameter has a gradient; call loss.backward() first")
        norms = [torch._foreach_norm([p.grad for p in params]) for params in given]
        total = torch.stack([norm for part in norms for norm in part]).square().sum().sqrt()
        made = torch.ones_like(total) if loss is None else (loss.isfinite() & total.isfinite()).to(total.dtype)
        for group, params, parts in zip(self.param_groups, given, norms):
            if params:
                scales = (clip / (torch.stack(parts) + NORM_EPS)).clamp(max=1.0)
                torch._foreach_mul_([p.grad for p in params], list(scales.unbind()))
                frozen = freeze_last_layer if group["last_layer"] else False
                update = made * (1 - frozen.to(made) if isinstance(frozen, Tensor) else not frozen)
                if group["decayed"]:
                    torch._foreach_mul_(params, 1 - update * lr * weight_decay)
                self._update(group, lr, (1 - update).float())
        return torch.stack([total, made]).float()

    def _update(self, group: dict, lr: float | Tensor, skip: Tensor) -> None:
        """AdamW without weight decay on a group, unless `skip` () is 1."""
        params, grads, means, squares, highest, steps = [], [], [], [], [], []
        self._init_group(group, params, grads, means, squares, highest, steps)
        beta1, beta2 = group["betas"]
        adamw(
            params, grads, means, squares, highest, steps, fused=True, capturable=group["capturable"], found_inf=skip,
            amsgrad=False, beta1=beta1, beta2=beta2, lr=lr, weight_decay=0.0, eps=group["eps"], maximize=False,
        )  # fmt: skip
