"""A small model with its optimiser and checkpoints."""

import torch
from torch import nn

from cinema_fast.train.optimizer import adamw, groups_of
from cinema_fast.train.ranks import ALONE, Ranks
from cinema_fast.train.sharded_checkpoint import ShardedCheckpoints


class Trained:
    """A small model, its optimiser, and checkpoints of both."""

    def __init__(self, folder, kind=ShardedCheckpoints, keep: int = 2, ranks: Ranks = ALONE, **how):
        self.model = nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30))
        self.optimizer = adamw(groups_of(self.model, weight_decay=0.1), lr=1e-2)
        self.checkpoints = kind(folder, keep=keep, ranks=ranks, **how)
        self.step = 0

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.step += 1
            self.model(torch.randn(8, 40, generator=torch.Generator().manual_seed(self.step))).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self) -> None:
        self.checkpoints.save(self.step, self.model, self.optimizer, {"meter": {"skipped": self.step}})

    def tensors(self) -> list:
        kept = [tensor for of in self.optimizer.state_dict()["state"].values() for tensor in of.values()]
        return [tensor.detach().clone() for tensor in (*self.model.parameters(), *kept)]
