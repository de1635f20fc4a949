"""One BLAS thread for each worker, and one torch thread where torch is in use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Set BLAS and torch to one thread, and back at the end.

    Two BLAS threads on a busy core get in each other's way, and sums split over threads differ in their last bits.
    """
    torch = sys.modules.get("torch")  # not imported for this: a repair does without it
    before = torch.get_num_threads() if torch else 1
    if torch:
        torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)
