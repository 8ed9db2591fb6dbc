"""Losses of the reference's fine-tuning recipes, and how those of several targets are balanced."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice, the mean over samples and channels: both (B, C, *size) in [0, 1].

    With 1e-5 in numerator and denominator, as in the reference: what is absent from both counts as found.
    """
    axes = tuple(range(2, probability.ndim))
    both = (probability * target).sum(axes)
    return 1 - ((2 * both + 1e-5) / (probability.sum(axes) + target.sum(axes) + 1e-5)).mean()


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice without the background, plus cross-entropy: logits (B, C, *size), labels (B, *size) int64."""
    logits = logits.float()
    wanted = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].float()
    return dice_loss(logits.softmax(1)[:, 1:], wanted) + F.cross_entropy(logits, labels)


def heatmap_loss(logits: Tensor, maps: Tensor, known: Tensor) -> Tensor:
    """Soft Dice plus binary cross-entropy of the landmarks that are known: logits, maps (B, L, X, Y); known (B, L)."""
    logits, here = logits.float()[known], maps[known]
    if not len(logits):
        return logits.sum()
    return dice_loss(logits.sigmoid()[None], here[None]) + F.binary_cross_entropy_with_logits(logits, here)


def target_loss(output: Tensor, values: Tensor, *, classified: bool) -> Tensor:
    """Mean loss over the studies that have a value: squared error of a standardised number, or cross-entropy.

    output (B, 1), or (B, classes). values (B,): standardised numbers or the classes' numbers; NaN where unknown.
    """
    known = ~values.isnan()
    output, values = output.float()[known], values[known]
    if not len(values):
        return output.sum()
    return F.cross_entropy(output, values.long()) if classified else F.mse_loss(output[:, 0], values)


def balanced(losses: Tensor, log_variance: Tensor, classified: list[bool], known: Tensor) -> Tensor:
    """One loss of several (targets,), weighed by the uncertainty s = log variance (targets,) that is learnt of each.

    exp(-s) L + s / 2 for a class, half of the first term for a number (Kendall et al., "Multi-task learning using
    uncertainty to weigh losses", CVPR 2018).

    known (targets,) bool: which of them some study of the batch has a value of; nothing is learnt of the others.
    """
    halved = torch.stack([loss if is_class else loss / 2 for loss, is_class in zip(losses.unbind(), classified)])
    return (torch.exp(-log_variance) * halved + known * log_variance / 2).sum()
