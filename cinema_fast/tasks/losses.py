"""Losses of the reference's fine-tuning recipes, and the balance of several targets' losses.

Unknown values are masked, not removed, so that shapes are fixed and the host does not wait for the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice, the mean over samples and channels: both (B, C, *size) in [0, 1].

    With 1e-5 in numerator and denominator, as in the reference: a structure absent from both counts as found.
    """
    return 1 - _soft_dice(probability, target).mean()


def _soft_dice(probability: Tensor, target: Tensor) -> Tensor:
    """(B, C)."""
    axes = tuple(range(2, probability.ndim))
    both = (probability * target).sum(axes)
    return (2 * both + 1e-5) / (probability.sum(axes) + target.sum(axes) + 1e-5)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice without the background, plus cross-entropy: logits (B, C, *size), labels (B, *size) int64."""
    logits = logits.float()
    classes = torch.arange(1, logits.shape[1], device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    wanted = (labels.unsqueeze(1) == classes).float()
    return dice_loss(logits.softmax(1)[:, 1:], wanted) + F.cross_entropy(logits, labels)


def heatmap_loss(logits: Tensor, maps: Tensor, known: Tensor) -> Tensor:
    """Soft Dice plus binary cross-entropy of the known landmarks: logits, maps (B, L, X, Y); known (B, L)."""
    logits, n = logits.float(), known.sum().clamp(min=1)
    dice = torch.where(known, _soft_dice(logits.sigmoid(), maps), 0.0).sum() / n
    entropy = F.binary_cross_entropy_with_logits(logits, maps, reduction="none")
    entropy = torch.where(known[..., None, None], entropy, 0.0).sum() / (n * maps[0, 0].numel())
    return known.any().float() - dice + entropy


def target_loss(output: Tensor, values: Tensor, *, classified: bool) -> Tensor:
    """Mean loss over the studies that have a value: squared error of a standardised number, or cross-entropy.

    output (B, 1), or (B, classes). values (B,): standardised numbers or the classes' numbers; NaN where unknown.
    """
    known, output, values = ~values.isnan(), output.float(), values.nan_to_num(0.0)
    if classified:
        losses = F.cross_entropy(output, values.long(), reduction="none")
    else:
        losses = F.mse_loss(output[:, 0], values, reduction="none")
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)


def balanced(losses: Tensor, log_variance: Tensor, classified: list[bool], known: Tensor) -> Tensor:
    """One loss of several (targets,), weighted by the learned uncertainty s = log variance (targets,) of each.

    It is exp(-s) L + s / 2 for a class, with half of the first term for a number (Kendall et al., "Multi-task learning
    using uncertainty to weigh losses", CVPR 2018).

    known (targets,) bool: whether a study of the batch has a value of the target; others do not contribute.
    """
    halved = torch.stack([loss if is_class else loss / 2 for loss, is_class in zip(losses.unbind(), classified)])
    return (torch.exp(-log_variance) * halved + known * log_variance / 2).sum()
