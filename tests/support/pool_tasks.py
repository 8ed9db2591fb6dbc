"""What worker processes do in the tests of the pool; they import this file, and no pytest."""

import os
import signal
import time


def work(task: int) -> int:
    if task == 3:
        raise ValueError("three")
    if task == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task


def sleep(task: int) -> None:
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece: two processes write into one pipe
    time.sleep(600)
