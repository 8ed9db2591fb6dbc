"""The visible and masked tokens of a view as index lists, which the operations take instead of a boolean mask."""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenPlan(NamedTuple):
    """Which tokens of a view are visible and which are to be predicted, for a batch.

    keep (B, K) int32: grid positions of the visible tokens, ascending.
    masked (B, M) int32: grid positions of the tokens to decode, ascending; a subset of the masked tokens where only
        some of them are decoded, so K + M <= N.
    slot (B, N) int32: index in `keep` of each grid position, -1 where it is not visible.

    K and M are the same for every sample, so that every shape in a step is static.
    """

    keep: Tensor
    masked: Tensor
    slot: Tensor

    @classmethod
    def from_mask(cls, mask: Tensor) -> "TokenPlan":
        """Plan of a boolean mask (B, N), True = masked, which decodes every masked token.

        Reads the counts back from the device. Raises ValueError where `mask` is not boolean of rank 2 or its rows
        mask different numbers of tokens.
        """
        if mask.dtype != torch.bool or mask.ndim != 2 or not len(mask):
            raise ValueError(
                f"TokenPlan.from_mask: expected a boolean (B, N) mask, got {mask.dtype} {tuple(mask.shape)}"
            )
        counts = mask.sum(1).unique()
        if counts.numel() != 1:
            raise ValueError(
                "TokenPlan.from_mask: every sample must mask the same number of tokens, "
                f"got between {int(counts.min())} and {int(counts.max())} of {mask.shape[1]}"
            )
        order = mask.to(torch.uint8).argsort(dim=1, stable=True).to(torch.int32)
        n_keep = mask.shape[1] - int(counts)
        return cls.from_ids(order[:, :n_keep].contiguous(), order[:, n_keep:].contiguous(), mask.shape[1])

    @classmethod
    def from_ids(cls, keep: Tensor, masked: Tensor, n: int) -> "TokenPlan":
        """Plan of ascending int32 ids `keep` (B, K) and `masked` (B, M) on a grid of n tokens."""
        batch, n_keep = keep.shape
        slot = torch.full((batch, n), -1, dtype=torch.int32, device=keep.device)
        rank = torch.arange(n_keep, dtype=torch.int32, device=keep.device).expand(batch, n_keep)
        return cls(keep, masked, slot.scatter(1, keep.long(), rank))

    @classmethod
    def empty(cls, batch: int, n: int, n_keep: int, n_decode: int, device: torch.device) -> "TokenPlan":
        """Uninitialised tensors of a plan, for a kernel to write."""
        return cls(*(torch.empty(batch, k, dtype=torch.int32, device=device) for k in (n_keep, n_decode, n)))

    @classmethod
    def everything(cls, batch: int, n: int, device: torch.device) -> "TokenPlan":
        """Plan in which all n tokens are visible and none is decoded."""
        ids = torch.arange(n, dtype=torch.int32, device=device).expand(batch, n).contiguous()
        return cls(ids, ids[:, :0], ids)
