"""One BLAS thread for each worker, and one torch thread where torch is in use."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from threadpoolctl import threadpool_limits

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
