"""Graceful shutdown: SIGTERM or Ctrl-C lets the running step finish and be saved, another Ctrl-C ends at once.

One signal may come twice: a scheduler sends it to every process of a job, and torchrun, one of these, to its ranks.
"""

import math
import signal
import threading
import time

ONCE_S = 1.0  # within which two are one


class StopRequest:
    """Context manager that turns SIGTERM and SIGINT into a flag; `signum` is the signal that came, or None."""

    def __init__(self):
        self.signum: int | None = None
        self._came = math.inf
        self._before = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum, _frame):
        if signum == signal.SIGINT and time.monotonic() - self._came > ONCE_S:
            raise KeyboardInterrupt
        if self.signum is None:
            self.signum, self._came = signum, time.monotonic()
