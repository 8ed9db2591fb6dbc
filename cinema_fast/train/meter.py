"""Loss and gradient norm of the steps since the last log line, kept on the device until a line is due."""

import math
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..common.naming import counted
from ..models.flops import H100_BF16
from .ranks import Ranks


class NonFiniteError(ValueError):
    """Too many updates in a row had a loss or gradient that is not finite, or a weight is not."""


LAST = 5  # a run has failed if this many updates at its end were all skipped


def check_weights(model: nn.Module, step: int, newest: Callable[[], int], ranks: Ranks) -> None:
    """Raise NonFiniteError, on every rank, where a weight of any rank is not finite after a step.

    newest: returns the step of the newest complete checkpoint, 0 where there is none; called by all ranks or none.

    Called before each checkpoint: no run can continue from such weights, and they would replace earlier, good ones.
    """
    weights = {name: getattr(p, "to_local", p.detach)() for name, p in model.named_parameters()}
    finite = torch.stack([weight.isfinite().all() for weight in weights.values()]).tolist()
    bad = [name for name, fine in zip(weights, finite) if not fine]
    if ranks.most(len(bad)):
        which = f"{len(bad)} of {len(finite)} weights are not finite, {bad[0]} among them" if bad else (
            "weights that another rank has are not finite"
        )
        raise NonFiniteError(f"step {step}: {which}, and are not saved. {_go_back(newest())}")


def _go_back(saved: int) -> str:
    back = f"--resume goes back to step {saved}, whose weights are finite" if saved else "There is no checkpoint yet"
    return f"{back}. If it happens again: --precision fp32, or another run (--out) with a lower --lr"


def ended_skipping(skipped: int, done: int) -> str:
    """The message where the last `skipped` updates of a run of `done` steps were skipped."""
    return (
        f"the run failed: the loss or gradient of its last {counted(skipped, 'update')} was not finite. They were "
        f"skipped, so the weights are those of step {done - skipped}. Check the studies named above, then start "
        "another run (--out) with --precision fp32 or a lower --lr"
    )


@dataclass
class Meter:
    """Collects one (3,) tensor a step: loss, gradient norm, and 1 where the update was made.

    max_skips: updates in a row that may be skipped. newest: as for `check_weights`. skipped: updates skipped so far.
    replaced: studies replaced so far.
    """

    max_skips: int
    newest: Callable[[], int]
    skipped: int = 0
    skipped_in_a_row: int = 0
    replaced: int = 0
    _rows: list[list[float]] = field(default_factory=list)  # for the next line, on the host
    _pending: list[tuple[int, tuple[str, ...], Tensor]] = field(default_factory=list)  # on the device
    _timed: int = 0  # steps since the clock was started
    _flops: float = 0.0  # useful FLOPs of these steps
    _since: float = field(default_factory=time.perf_counter)
    _spent: dict[str, float] = field(default_factory=dict)

    def add(self, step: int, ids: tuple[str, ...], result: Tensor, flops: float) -> None:
        """Record the result of a step (counted from 1) on the studies `ids`, without waiting. flops: useful FLOPs."""
        self._pending.append((step, ids, result))
        self._timed += 1
        self._flops += flops

    def read(self) -> list[str]:
        """Read the results back from the device; returns a note for each update that was skipped.

        Raises NonFiniteError, with these notes, after more than `max_skips` skipped updates in a row.
        """
        if not self._pending:
            return []
        rows = torch.stack([result for _, _, result in self._pending]).tolist()
        notes = []
        for (step, ids, _), (loss, norm, made) in zip(self._pending, rows):
            if made:
                self.skipped_in_a_row = 0
                continue
            self.skipped += 1
            self.skipped_in_a_row += 1
            what = f"loss {loss:g}" if not math.isfinite(loss) else f"gradient norm {norm:g}"
            notes.append(f"step {step}: {what} is not finite, update skipped; studies {', '.join(ids)}")
            if self.skipped_in_a_row > self.max_skips:
                raise NonFiniteError(
                    "\n".join(notes) + f"\n{self.skipped_in_a_row} updates in a row were skipped (--max-skips "
                    f"{self.max_skips}). {_go_back(self.newest())}"
                )
        self._rows += rows
        self._pending.clear()
        return notes

    def line(self, spent: Mapping[str, float], batch: int, device: torch.device) -> dict:
        """Means since the last line, over the updates that were made; starts the next line. Call `read` first.

        spent: {name: seconds spent so far}; the line has the share of its time. batch: studies per step. "peak_mib" is
        memory: on a GPU the most that was allocated since the last line, on a CPU the most that the process ever held.
        "tflops", where FLOPs are counted, is useful TFLOP/s, and "mfu" its share of an H100's bf16 peak.
        """
        made = [(loss, norm) for loss, norm, ok in self._rows if ok]
        seconds = max(time.perf_counter() - self._since, 1e-9)
        values = {
            "loss": math.fsum(loss for loss, _ in made) / len(made) if made else None,
            "grad_norm": math.fsum(norm for _, norm in made) / len(made) if made else None,
            "skipped": self.skipped,
            "studies_per_s": round(self._timed * batch / seconds, 3),
        }
        if self._flops:
            values["tflops"] = round(self._flops / seconds / 1e12, 4)
        for name, total in spent.items():
            values[name] = round(min((total - self._spent.get(name, 0.0)) / seconds, 1.0), 4)
        if self._flops and device.type == "cuda":
            values["mfu"] = round(self._flops / seconds / H100_BF16, 4)
        self._rows.clear()
        self.start_clock(spent)
        return values | {"peak_mib": _peak_mib(device)}

    def start_clock(self, spent: Mapping[str, float]) -> None:
        """Begin timing; spent: {name: seconds spent before}."""
        self._timed, self._flops, self._since, self._spent = 0, 0.0, time.perf_counter(), dict(spent)

    def skipped_at_end(self, done: int) -> int:
        """Number of updates in a row that were skipped up to `done`, the last step, if they are LAST or more, or all
        that were made: then the run has failed. Else 0. Call `read` first."""
        return self.skipped_in_a_row if self.skipped_in_a_row >= min(LAST, done) else 0

    def state(self) -> dict:
        """Plain values that `restore` takes; call `read` first."""
        return {
            "rows": [list(row) for row in self._rows],
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "replaced": self.replaced,
        }

    def restore(self, state: dict) -> None:
        """Continue from a saved state."""
        self._rows = [list(row) for row in state["rows"]]
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.replaced = state["replaced"]


def _peak_mib(device: torch.device) -> int:
    if device.type != "cuda":
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return round(peak / 2**20)
