"""Workers side by side, with one BLAS thread for each, and one torch thread where torch is in use."""

from __future__ import annotations

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

# The number of threads belongs to the process, so runs side by side have to share one limit: the first sets it, the last
# takes it back.
_lock = threading.Lock()
_limits: list[ExitStack] = []
_users = [0]


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Set BLAS and torch to one thread, and back when the last of those that asked for it has ended.

    Two BLAS threads on a busy core get in each other's way, and sums split over threads differ in their last bits.
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
    """Limits that end when the stack is closed."""
    stack = ExitStack()
    stack.enter_context(threadpool_limits(1))
    torch = sys.modules.get("torch")  # not imported for this: a repair does without it
    if torch:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
    return stack


class Workers:
    """Threads that work on tasks side by side, each with one BLAS thread; a context manager that ends them.

    Args:
        count: how many; None for one a core.

    Attributes:
        count: how many there are.
        stopped: set once the work is to end, because a task failed or the block was left.

    Raises:
        UsageError: the count is below 1.
    """

    def __init__(self, count: int | None) -> None:
        self.count = len(os.sched_getaffinity(0)) if count is None else count
        if self.count < 1:
            raise UsageError(f"{option('workers')}: {count} workers can do nothing; give 1 or more")
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
        """Results in the order of the tasks; the first failure is raised and keeps the other tasks from being begun."""

        def work(task: Task) -> Result:
            if self.stopped.is_set():
                raise CancelledError
            return function(task)

        futures = [self._executor.submit(work, task) for task in tasks]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failures = [future.exception() for future in futures if future.done()]
            for failure in failures:
                if failure is not None:
                    raise failure
        except BaseException:
            self.stopped.set()
            raise
        return [future.result() for future in futures]
