"""Groups of pairs of frames over which the flow's magnitude is averaged: the cycle, or each tubelet of a clip."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class PairGroups(NamedTuple):
    """Group g of G holds the pairs members[begin[g]] .. members[begin[g + 1] - 1], each with its weight in the mean."""

    begin: tuple[int, ...]
    members: tuple[int, ...]
    shares: tuple[float, ...]

    @property
    def count(self) -> int:
        return len(self.begin) - 1

    def of_pairs(self, first: int, end: int) -> "PairGroups":
        """The same groups, restricted to pairs first .. end - 1, which are numbered from 0; weights are unchanged."""
        rows = zip(self.begin, self.begin[1:])
        kept = [[k for k in range(*row) if first <= self.members[k] < end] for row in rows]
        begin = [0, *accumulate(map(len, kept))]
        members = tuple(self.members[k] - first for row in kept for k in row)
        return PairGroups(tuple(begin), members, tuple(self.shares[k] for row in kept for k in row))


def pair_shares(pairs: Sequence[tuple[int, int]], n_frames: int, tubelet: int | None) -> Tensor:
    """(G, P) float64: the weight of each pair's magnitude in each group's mean.

    Without `tubelet` one group holds all pairs. Else the motion of a frame is the mean over the pairs that name it (0
    where none does), and that of a group the mean over `tubelet` consecutive frames.
    """
    if tubelet is None:
        return torch.full((1, len(pairs)), 1 / max(len(pairs), 1), dtype=torch.float64)
    names = torch.zeros(n_frames, len(pairs), dtype=torch.float64)
    for frames in zip(*pairs):  # the first frames of all pairs, then the second frames
        names[frames, range(len(pairs))] = 1
    of_frames = names / names.sum(1, keepdim=True).clamp(min=1)
    return of_frames.view(n_frames // tubelet, tubelet, len(pairs)).mean(1)


@lru_cache(maxsize=64)
def pair_groups(pairs: tuple[tuple[int, int], ...], n_frames: int, tubelet: int | None) -> PairGroups:
    """The groups, with the shares that are not zero."""
    shares = pair_shares(pairs, n_frames, tubelet)
    begin = [0, *shares.count_nonzero(1).cumsum(0).tolist()]
    return PairGroups(tuple(begin), tuple(shares.nonzero()[:, 1].tolist()), tuple(shares[shares != 0].tolist()))
