"""DINO as its public code computes it, in plain PyTorch: the peer of this project's step.

Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021. What that code does is kept: the
backbone runs once for each resolution and the head over all class tokens; attention writes its weights; logits are
written, and the loss is a term for each pair of crops; clipping and the teacher's average go parameter by parameter,
clipping with a number read back for each.
"""

from collections.abc import Mapping, Sequence

import checkout  # noqa: F401
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cinema_fast as cf
from cinema_fast.models.config import DINOConfig, ViTConfig

NORM_EPS = 1e-6


class PlainAttention(nn.Module):
    """Multi-head self-attention; `fused`: by PyTorch's own operator, which writes no weights."""

    fused = False

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, n, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, n, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, n, width))


class PlainMlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PlainBlock(nn.Module):
    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = PlainAttention(width, n_heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = PlainMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainPatches(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class PlainViT(nn.Module):
    """Images (B, C, X, Y) -> normalised class tokens (B, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patch, self.side = config.patch_size, config.image_size // config.patch_size
        self.patch_embed = PlainPatches(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, config.embed_dim))
        self.blocks = nn.ModuleList(PlainBlock(config.embed_dim, config.n_heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], dim=1)
        x = x + self.positions(images.shape[2] // self.patch, images.shape[3] // self.patch)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def positions(self, rows: int, columns: int) -> Tensor:
        if rows == columns == self.side:
            return self.pos_embed
        patches = self.pos_embed[:, 1:].reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        factors = ((rows + 0.1) / self.side, (columns + 0.1) / self.side)
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


class PlainPrototypes(nn.Module):
    """A weight-normalised linear layer without bias."""

    def __init__(self, width: int, prototypes: int, fixed_norm: bool):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=not fixed_norm)
        self.weight_v = nn.Parameter(torch.ones(prototypes, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class PlainHead(nn.Module):
    def __init__(self, width: int, config: DINOConfig):
        super().__init__()
        hidden, bottleneck = config.head_hidden, config.bottleneck
        layers = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last_layer = PlainPrototypes(bottleneck, config.prototypes, config.norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class PlainBranch(nn.Module):
    """Crops -> logits: the backbone for each run of crops of one size, the head once."""

    def __init__(self, config: DINOConfig):
        super().__init__()
        self.backbone = PlainViT(config.vit)
        self.head = PlainHead(config.vit.embed_dim, config)

    def forward(self, crops: Sequence[Tensor]) -> Tensor:
        sizes = [crop.shape[-1] for crop in crops]
        runs = [[crop for crop in crops if crop.shape[-1] == size] for size in dict.fromkeys(sizes)]
        return self.head(torch.cat([self.backbone(torch.cat(run)) for run in runs]))


class PlainDINO(nn.Module):
    """Student, teacher and centre. Drop path is left out."""

    def __init__(self, config: DINOConfig):
        super().__init__()
        self.config = config
        self.student, self.teacher = PlainBranch(config), PlainBranch(config)
        self.teacher.requires_grad_(False)
        self.register_buffer("centre", torch.zeros(1, config.prototypes))

    def load(self, ours: cf.DINO) -> None:
        """The weights and the centre of this project's model."""
        self.load_states(ours.public_state("student"), ours.public_state("teacher"), ours.centre)

    def load_states(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], centre: Tensor) -> None:
        self.student.load_state_dict(student)
        self.teacher.load_state_dict(teacher)
        self.centre.copy_(centre)

    def use_fused_attention(self, fused: bool) -> None:
        """PyTorch's scaled_dot_product_attention instead of softmax(q k^T) v."""
        for module in self.modules():
            if isinstance(module, PlainAttention):
                module.fused = fused

    def forward(self, crops: Sequence[Tensor], teacher_temp: float) -> Tensor:
        """The loss; it updates the centre."""
        with torch.no_grad():
            targets = self.teacher(crops[:2])
        logits = self.student(crops)
        loss = self._loss(logits, targets, teacher_temp)
        self._update_centre(targets)
        return loss

    def _loss(self, logits: Tensor, targets: Tensor, teacher_temp: float) -> Tensor:
        student = (logits / self.config.student_temp).chunk(2 + self.config.n_local)
        teacher = ((targets - self.centre) / teacher_temp).softmax(dim=-1).chunk(2)
        terms = [
            torch.sum(-q * F.log_softmax(s, dim=-1), dim=-1).mean()
            for i, q in enumerate(teacher) for j, s in enumerate(student) if i != j
        ]  # fmt: skip
        return sum(terms) / len(terms)

    @torch.no_grad()
    def _update_centre(self, targets: Tensor) -> None:
        mean = targets.sum(dim=0, keepdim=True) / len(targets)
        keep = self.config.centre_momentum
        self.centre.copy_(self.centre * keep + mean * (1 - keep))

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        for student, teacher in zip(self.student.parameters(), self.teacher.parameters()):
            teacher.mul_(momentum).add_((1 - momentum) * student)

    def optimizer(self) -> torch.optim.AdamW:
        """Decayed matrices, then biases and norms; the rates are set before each step."""
        trained = [p for p in self.student.parameters() if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]
        return torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])


def plain_update(
    model: PlainDINO, optimizer: torch.optim.AdamW, *, lr: float, weight_decay: float, clip: float, momentum: float,
    freeze_last_layer: bool = False,
) -> None:  # fmt: skip
    """Clip each gradient by its own norm, update the student, then the teacher."""
    for group, decay in zip(optimizer.param_groups, (weight_decay, 0.0)):
        group |= {"lr": lr, "weight_decay": decay}
    for parameter in model.student.parameters():
        if parameter.grad is not None:
            scale = clip / (parameter.grad.norm() + 1e-6)
            if scale < 1:
                parameter.grad.mul_(scale)
    if freeze_last_layer:
        model.student.head.last_layer.weight_v.grad = None
    optimizer.step()
    model.update_teacher(momentum)
