"""DINO: self-distillation of a ViT (Caron et al., "Emerging properties in self-supervised vision transformers", ICCV
2021), with which Jacob et al. (JCMR 2025) pre-train a foundation model for cardiac MRI.

The student sees all crops of an image as one packed sequence, the teacher only the two global ones. The loss works on
their bottleneck outputs and the prototypes, so that logits are never written (`kernels/prototype_loss.py`), and the
centre's update is one product with the mean bottleneck output, since logits are linear in it.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.prototype_loss import prototype_loss
from .config import DINOConfig
from .dino_optimizer import DINOOptimizer
from .vit import ViT, initialise
from .weights import load_fitting, published


class DINOOutput(NamedTuple):
    """loss: scalar. metrics: "teacher_entropy" and "kl_to_mean" [nats], of the teacher's outputs on this batch,
    detached. teacher_mean: (1, bottleneck) float32, the mean of the teacher's bottleneck outputs."""

    loss: Tensor
    metrics: dict[str, Tensor]
    teacher_mean: Tensor


class Prototypes(nn.Module):
    """Parameters of the weight-normalised last layer: row k is weight_g[k] * weight_v[k] / |weight_v[k]|."""

    def __init__(self, width: int, prototypes: int, *, fixed_norm: bool):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=not fixed_norm)
        self.weight_v = nn.Parameter(nn.Linear(width, prototypes, bias=False).weight.detach())

    def forward(self) -> Tensor:
        """(prototypes, width)."""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def logits(self, x: Tensor) -> Tensor:
        """x (B, width) -> (B, prototypes), without writing the normalised rows."""
        lengths = torch.linalg.vector_norm(self.weight_v, dim=1)
        return x @ self.weight_v.T * (self.weight_g[:, 0] / lengths)


class Head(nn.Module):
    """Class tokens -> bottleneck outputs; and the prototypes that they are compared with."""

    def __init__(self, width: int, config: DINOConfig):
        super().__init__()
        hidden = config.head_hidden
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, config.bottleneck),
        )  # fmt: skip
        self.apply(initialise)
        self.last_layer = Prototypes(config.bottleneck, config.prototypes, fixed_norm=config.norm_last_layer)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, D) -> (B, bottleneck) float32, each row of length 1."""
        x = self.mlp(tokens)
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


class Branch(nn.Module):
    """A backbone with its head: the student or the teacher."""

    def __init__(self, config: DINOConfig, *, drop_path: float = 0.0):
        super().__init__()
        self.backbone = ViT(config.vit, drop_path=drop_path)
        self.head = Head(config.vit.embed_dim, config)

    def forward(self, groups: Sequence[Tensor]) -> Tensor:
        """Groups of crops, each of one size -> bottleneck outputs (all crops, bottleneck)."""
        return self.head(self.backbone.class_tokens(groups))


class DINO(nn.Module):
    """Student, teacher and centre.

    Attributes:
        student, teacher: `Branch`; the teacher starts as a copy and is only changed by `update_teacher`.
        centre: (1, prototypes) float32, the moving average of the teacher's logits.
    """

    def __init__(self, config: DINOConfig):
        super().__init__()
        if not isinstance(config, DINOConfig):
            raise ValueError(f"DINO: expected a DINOConfig, as preset('cmrfm-small8') is, got {type(config).__name__}")
        self.config = config
        self.student = Branch(config, drop_path=config.drop_path)
        self.teacher = Branch(config)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.register_buffer("centre", torch.zeros(1, config.prototypes))

    def forward(
        self, crops: Sequence[Tensor], teacher_temp: float | Tensor, *, update_centre: bool = True
    ) -> DINOOutput:
        """The loss of the student's crops against the teacher's global ones.

        Args:
            crops: 2 global crops (B, C, size, size) of `config.vit.image_size`, then `config.n_local` local ones of
                `config.local_size`; floating.
            teacher_temp: temperature of the teacher's softmax; a tensor () is not read back.
            update_centre: update the centre by this batch, after the loss was computed with the old one.

        Raises:
            ValueError: a wrong number or shape of crops, or a temperature that is not above 0.
        """
        self._check(crops, teacher_temp)
        together = [torch.cat(tuple(part)) for part in (crops[:2], crops[2:]) if len(part)]
        with torch.no_grad():
            targets = self.teacher(together[:1])
            prototypes = self.teacher.head.last_layer()
            mean = targets.mean(0, keepdim=True)
        loss, figures = prototype_loss(
            self.student(together), targets, self.student.head.last_layer(), prototypes,
            self.centre.clone() if update_centre else self.centre,  # the backward reads the old one
            student_temp=self.config.student_temp, teacher_temp=teacher_temp,
        )  # fmt: skip
        if update_centre:
            self.update_centre(mean)
        return DINOOutput(loss, {"teacher_entropy": figures[0], "kl_to_mean": figures[1]}, mean)

    @torch.no_grad()
    def update_centre(self, teacher_mean: Tensor) -> None:
        """Move the centre towards the mean of the teacher's logits: those of `teacher_mean` (1, bottleneck)."""
        with torch.autocast(self.centre.device.type, enabled=False):
            logits = self.teacher.head.last_layer.logits(teacher_mean)
        keep = self.config.centre_momentum
        self.centre.mul_(keep).add_(logits, alpha=1 - keep)

    @torch.no_grad()
    def update_teacher(self, momentum: float | Tensor) -> None:
        """Move each weight of the teacher towards the student's: momentum * its own + (1 - momentum) * the student's.

        momentum: a number from 0 to 1, else ValueError, or a tensor () on the device, which is not read back.
        """
        if not isinstance(momentum, Tensor) and not 0 <= momentum <= 1:
            raise ValueError(f"DINO.update_teacher: momentum must be from 0 to 1, got {momentum}")
        teacher, student = list(self.teacher.parameters()), list(self.student.parameters())
        share = [1 - momentum] * len(teacher) if isinstance(momentum, Tensor) else 1 - momentum
        torch._foreach_lerp_(teacher, student, share)

    def optimizer(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> DINOOptimizer:
        """AdamW over the student, with the recipe's update (`DINOOptimizer.step`)."""
        return DINOOptimizer(self.student, betas=betas, eps=eps)

    def load_public(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], centre: Tensor | None = None
    ) -> None:
        """Load state dicts of the public code's student and teacher (names `backbone.*` and `head.*`), and its centre.

        Raises ValueError listing tensors that are missing, unexpected or of another shape, or naming one that is not
        finite; nothing has been loaded then.
        """
        state = {f"{which}.{name}": tensor for which, tensors in (("student", student), ("teacher", teacher))
                 for name, tensor in published(tensors).items()}  # fmt: skip
        load_fitting(self, state | {"centre": self.centre if centre is None else centre}, " given to DINO.load_public")

    def public_state(self, which: str, grad: bool = False) -> dict[str, Tensor]:
        """The "student" or "teacher" under the public code's names, detached; with `grad` each parameter's gradient,
        of those that have one. Raises ValueError for any other name."""
        if which not in ("student", "teacher"):
            raise ValueError(f"DINO.public_state: expected 'student' or 'teacher', got {which!r}")
        branch = getattr(self, which)
        if grad:
            return {name: p.grad for name, p in branch.named_parameters() if p.grad is not None}
        return {name: tensor.detach() for name, tensor in branch.state_dict().items()}

    def recompute(self, how: str) -> None:
        """Trade memory for time in training: "none", "selective" or "full", see `layers.Block`."""
        self.student.backbone.recompute(how)

    def _check(self, crops: Sequence[Tensor], teacher_temp: float | Tensor) -> None:
        config = self.config
        above_0 = isinstance(teacher_temp, Real) and 0 < teacher_temp < math.inf
        if not above_0 and not isinstance(teacher_temp, Tensor):
            raise ValueError(f"DINO: teacher_temp must be above 0 and finite, got {teacher_temp}")
        if len(crops) != 2 + config.n_local:
            raise ValueError(f"DINO: expected {2 + config.n_local} crops, 2 global ones and {config.n_local} local "
                             f"ones, got {len(crops)}")  # fmt: skip
        batch = len(crops[0])
        for number, crop in enumerate(crops):
            size = config.vit.image_size if number < 2 else config.local_size
            expected = (batch, config.vit.in_chans, size, size)
            kind = "global" if number < 2 else "local"
            if tuple(crop.shape) != expected or not batch:
                raise ValueError(f"DINO: crops[{number}], a {kind} one: expected {expected}, got {tuple(crop.shape)}")
            if not crop.is_floating_point():
                raise ValueError(f"DINO: crops[{number}], a {kind} one: expected floating-point numbers, got "
                                 f"{str(crop.dtype)[6:]}")  # fmt: skip
