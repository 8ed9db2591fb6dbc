"""A profile of some training steps, for chrome://tracing or Perfetto, and as a table."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from .options import SETTLING_STEPS

TABLE_ROWS = 40


@contextmanager
def profile_steps(
    n: int, device: torch.device, folder: Path, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Profiles n steps of the block after the first three, and reports the files, or that there were too few steps.

    Yields a function that the block calls after each step. n = 0 profiles nothing; in a block of fewer than n + 3 steps
    (the end of a resumed run, or a run that was stopped) nothing is written.
    """
    if not n:
        yield lambda: None
        return
    on_gpu = device.type == "cuda"
    made = 0

    def step_done() -> None:
        nonlocal made
        made += 1
        trace.step()

    def write(trace: torch.profiler.profile) -> None:
        if made < n + SETTLING_STEPS:
            return
        folder.mkdir(exist_ok=True)
        trace.export_chrome_trace(str(folder / "trace.json"))
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = trace.key_averages().table(sort_by=order, row_limit=TABLE_ROWS, max_name_column_width=60)
        (folder / "table.txt").write_text(table)
        say(f"profile: {folder / 'trace.json'}, {folder / 'table.txt'}")

    with torch.profiler.profile(
        activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu],
        schedule=torch.profiler.schedule(wait=0, warmup=SETTLING_STEPS, active=n, repeat=1),
        on_trace_ready=write,
    ) as trace:
        yield step_done
    if made < n + SETTLING_STEPS:
        say(f"nothing was profiled: {made} steps were made, --profile {n} needs {n + SETTLING_STEPS}")
