"""The record of a run: metrics.jsonl, run.log, and a progress bar on a terminal, else plain lines."""

import json
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from ..common.atomic import sync_file, whole_file
from ..common.parsed_file import parse_json
from ..common.progress import terminal
from .run_info import RunInfo
from .sinks import SinkName, Sinks


class RunLog:
    """Writes OUT/metrics.jsonl (a JSON object a line) and OUT/run.log, and shows progress on stderr.

    Args:
        out: run folder. steps: steps of the whole run. done: steps made so far; later lines of metrics.jsonl are
        dropped, so that a resumed run's file equals that of an uninterrupted run. sinks: other outputs of the lines.
        info: of the run, for the sinks.
    """

    def __init__(self, out: Path, *, steps: int, done: int, sinks: Sequence[SinkName], info: RunInfo):
        self.steps = steps
        self._metrics_path = out / "metrics.jsonl"
        lines = self._drop_after(done)
        self._metrics = self._metrics_path.open("a", encoding="utf-8")
        self._text = (out / "run.log").open("a", encoding="utf-8", errors="backslashreplace")
        self._bar = None
        self._sinks = Sinks(sinks, out, info, lines=lines, say=self.say)
        self._bar = _bar(console, steps, done) if (console := terminal()) else None

    def __enter__(self) -> "RunLog":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, _type, error, _traceback):
        if self._bar:
            self._bar.stop()
        if error is not None:
            self._note(f"ended by {type(error).__name__}: {error}")
        self._sinks.close(failed=error is not None)
        self._metrics.close()
        self._text.close()

    def say(self, text: str) -> None:
        """Print a message, and write it to run.log."""
        self._note(text)
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def advance(self, step: int) -> None:
        """Move the progress bar to `step`."""
        if self._bar:
            self._bar.update(0, completed=step)

    def metrics(self, line: dict, *, batch: int) -> None:
        """Append a line with at least step, loss, lr, studies_per_s and data_wait. batch: studies per step."""
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        self._sinks.write(line)
        loss = "not finite" if line["loss"] is None else f"{line['loss']:.5f}"
        speed = f"{line['studies_per_s']:.4g} studies/s, data wait {line['data_wait']:.0%}"
        if self._bar:
            self._bar.update(0, completed=line["step"], loss=loss, speed=speed)
        else:
            left = timedelta(
                seconds=round((self.steps - line["step"]) * batch / max(line["studies_per_s"], 1e-3))
            )
            self.say(f"step {line['step']}/{self.steps}  loss {loss}  lr {line['lr']:.2e}  {speed}  left {left}")

    def sync(self) -> None:
        """Force the lines to disk, before a checkpoint of the same steps."""
        sync_file(self._metrics)

    def _note(self, text: str) -> None:
        self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._text.flush()

    def _drop_after(self, done: int) -> list[dict]:
        """Drop the lines of later steps; returns the remaining lines."""
        if not self._metrics_path.exists():
            return []
        kept, lines = [], []
        try:
            written = self._metrics_path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._metrics_path} is not text, or is damaged ({error.reason} at byte {error.start})"
                             ": restore it from a copy, or move it away to continue without its lines") from None
        for text in written.splitlines():
            try:
                line = parse_json(text)
                if line["step"] <= done:
                    kept.append(text + "\n")
                    lines.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # a line cut short by a kill
        with whole_file(self._metrics_path) as file:
            file.write_text("".join(kept), encoding="utf-8")
        return lines


class RankLog:
    """The log of another rank than the main one: run.rank-N.log, with that rank's messages."""

    def __init__(self, out: Path, rank: int):
        self._text = (out / f"run.rank-{rank}.log").open("a", encoding="utf-8", errors="backslashreplace")

    def __enter__(self) -> "RankLog":
        return self

    def __exit__(self, _type, error, _traceback):
        if error is not None:
            self.say(f"ended by {type(error).__name__}: {error}")
        self._text.close()

    def say(self, text: str) -> None:
        """Write a line to the file."""
        self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._text.flush()

    def advance(self, step: int) -> None:
        """Nothing: there is no bar."""

    def metrics(self, line: dict, *, batch: int) -> None:
        """Nothing: the main rank writes them."""

    def sync(self) -> None:
        """Nothing: there are no lines."""


def _bar(console, steps: int, done: int):
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]}  left"),
        TimeRemainingColumn(),
        console=console,
    )
    bar.add_task("", total=steps, completed=done, loss="-", speed="-")
    return bar
