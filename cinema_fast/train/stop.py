"""A polite end: the first SIGTERM or Ctrl-C lets the running step finish and be saved, the second ends at once."""

import signal
import threading


class StopRequest:
    """Context manager that turns SIGTERM and SIGINT into a flag; `signum` is the signal that came, or None."""

    def __init__(self):
        self.signum: int | None = None
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
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
