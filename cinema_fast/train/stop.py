"""Graceful shutdown: after SIGTERM or Ctrl-C the running step is finished and saved; a second Ctrl-C ends at once.

The same signal may arrive twice: a scheduler sends it to every process of a job, and torchrun, one of them, to its
ranks.
"""

import math
import signal
import threading
import time

ONCE_S = 1.0  # signals within this time count as one


class StopRequest:
    """Context manager that turns SIGTERM and SIGINT into a flag; `signum` is the signal that came, or None."""

    def __init__(self):
        self.signum: int | None = None
        self._came = math.inf
        self._before = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # handlers can only be set there
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
