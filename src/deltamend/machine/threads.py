"""Worker threads that run side by side. BLAS, and torch if it is imported, are limited to one thread for each worker."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Self, TypeVar

from threadpoolctl import threadpool_limits

from deltamend.errors import UsageError, option

Task = TypeVar("Task")
Result = TypeVar("Result")

# The limit on threads holds for the whole process, so runs side by side share it: the first sets it, the last removes it.
_lock = threading.Lock()
_limits: list[ExitStack] = []
_users = [0]


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Limit BLAS and torch to one thread, until the last of all blocks that are open at the same time ends.

    Two BLAS threads that compete for one core slow each other down, and a sum that is split over a varying number of threads
    varies in its last bits.
    """
    with _lock:
        if _users[0] == 0:
            _limits.append(_limited())
        _users[0] += 1
    try:
        yield
    finally:
        with _lock:
            _users[0] -= 1
            if _users[0] == 0:
                _limits.pop().close()


def _limited() -> ExitStack:
    """Set the limits; closing the stack removes them."""
    importlib.import_module("scipy.linalg")  # loads scipy's own BLAS, which a later import would leave without a limit
    stack = ExitStack()
    stack.enter_context(threadpool_limits(1))
    torch = sys.modules.get("torch")  # a repair works without torch, so it is not imported just for this
    if torch:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
    return stack


class Workers:
    """A pool of threads, each with one BLAS thread. Use it as a context manager, which ends the threads.

    Args:
        count: number of threads; None for one per core.

    Attributes:
        count: number of threads.
        stopped: set when a task has failed or the block has ended; running tasks may check it to end early.

    Raises:
        UsageError: the count is below 1.
    """

    def __init__(self, count: int | None) -> None:
        self.count = len(os.sched_getaffinity(0)) if count is None else count
        if self.count < 1:
            raise UsageError(f"{option('workers')}: {count} is too few; give 1 or more")
        self.stopped = threading.Event()
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            opening.enter_context(one_thread_each())
            self._executor = opening.enter_context(ThreadPoolExecutor(self.count))
            self._resources = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._resources.close()

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> list[Result]:
        """Call the function on every task, in parallel.

        Returns:
            The results, in the order of the tasks. The first error of a task is raised; tasks that have not begun by then
            are not begun.
        """

        def work(task: Task) -> Result:
            if self.stopped.is_set():
                raise CancelledError
            try:
                return function(task)
            except BaseException:
                self.stopped.set()  # here, as the thread that waits may wake up only after many more tasks have begun
                raise

        futures = [self._executor.submit(work, task) for task in tasks]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failures = [failure for future in futures if future.done() and (failure := future.exception()) is not None]
            # A task that was stopped because another failed raises CancelledError, which says nothing of the cause.
            for failure in sorted(failures, key=lambda failure: isinstance(failure, CancelledError)):
                raise failure
        except BaseException:
            self.stopped.set()
            raise
        return [future.result() for future in futures]
