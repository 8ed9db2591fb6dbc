"""The best weights of a run by its validations, and early stopping."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .checkpoint import save_checkpoint
from .method import Validation


class Best:
    """score, step: of the best validation. since: number of validations after it. at: step of the newest validation.

    Without validation studies the newest weights are the best.
    """

    def __init__(self, validation: Validation, out: Path):
        self._validation, self._folder = validation, out / "best"
        self.score, self.step, self.since, self.at = -math.inf, 0, 0, 0

    def judge(self, step: int, figures: Mapping[str, float]) -> bool:
        """Record the figures of a validation; returns whether they are the best so far."""
        self.at = step
        better = not figures or figures["score"] > self.score
        if better:
            self.score, self.step, self.since = figures.get("score", 0.0), step, 0
        else:
            self.since += 1
        return better

    def save(self, weights: dict[str, Tensor], figures: Mapping[str, float]) -> None:
        """Save the weights of the best validation. Raises CheckpointError."""
        save_checkpoint(self._folder, self.step, weights, {"figures": dict(figures)}, keep=1)

    def enough(self) -> bool:
        """Whether to stop early: no validation was better for too long."""
        return 0 < self._validation.patience <= self.since

    def state(self) -> dict:
        """Plain values that `restore` takes."""
        return {"score": self.score, "step": self.step, "since": self.since, "at": self.at}

    def restore(self, state: dict, step: int) -> None:
        """Continue from a state that was saved after `step`; older versions made no validation then."""
        self.score, self.step, self.since = state["score"], state["step"], state["since"]
        self.at = state.get("at", step)
