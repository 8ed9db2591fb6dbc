"""Runs independent tasks in worker processes; if a worker dies, only its own task fails."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def run_in_processes(
    function: Callable[[T], R], tasks: Iterable[T], workers: int, *, contained: bool = False
) -> Iterator[tuple[T, R | Exception]]:
    """Yield (task, result) in the order of completion; for a task that raised, the exception in place of the result.

    A worker that dies (killed, out of memory) breaks its pool. The tasks then running are tried again, each in a pool
    of its own, so that only the task that kills its worker fails.

    Args:
        function: picklable, as are its tasks and results; workers are spawned and import it again.
        workers: number of processes; they end with this one, however it ends. With 1 everything runs in this process.
        contained: use a process even for a single worker, for tasks that may crash it.
    """
    waiting = deque(tasks)
    if workers == 1 and not contained:
        for task in waiting:
            yield task, _outcome(function, task)
        return
    while waiting:
        under_way: dict[Future[R], T] = {}
        with _pool(workers) as pool:
            broken = False
            while not broken and (waiting or under_way):
                try:
                    while waiting and len(under_way) < workers:
                        under_way[_submit(pool, function, waiting[0])] = waiting[0]
                        waiting.popleft()
                except BrokenProcessPool:
                    broken = True  # a worker died between two tasks
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    if isinstance(future.exception(), BrokenProcessPool):
                        broken = True
                    else:
                        yield under_way.pop(future), future.exception() or future.result()
        for task in under_way.values():
            with _pool(1) as alone:
                future = _submit(alone, function, task)
                yield task, future.exception() or future.result()


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that waits for its tasks; where the block raises an error, its workers are ended at once."""
    with _interrupts_later():  # between making a semaphore and noting it for removal, Ctrl-C would leave it behind
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=begin_worker)
    with pool:
        try:
            yield pool
        except BaseException:
            for process in list((pool._processes or {}).values()):  # from Python 3.14 on: pool.terminate_workers()
                process.terminate()
            raise


def _submit(pool: ProcessPoolExecutor, function: Callable[[T], R], task: T) -> Future[R]:
    """Give a pool a task. A worker that is started for it ignores Ctrl-C from the first moment."""
    with _interrupts_later():
        return pool.submit(function, task)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block; a process that is started in it does not get it at all.

    A mask alone would not hold it back: another thread would get the signal, and the main one the KeyboardInterrupt.
    """
    waiting = []
    handler = signal.getsignal(signal.SIGINT)
    replaced = handler is not None and threading.current_thread() is threading.main_thread()
    if replaced:
        signal.signal(signal.SIGINT, lambda *_: waiting.append(True))
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        if replaced:
            signal.signal(signal.SIGINT, handler)
    if waiting:
        signal.raise_signal(signal.SIGINT)


def begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _outcome(function: Callable[[T], R], task: T) -> R | Exception:
    try:
        return function(task)
    except Exception as err:
        return err
