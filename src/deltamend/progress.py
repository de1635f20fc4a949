"""Progress callbacks: how long-running work tells its caller how much of it is done."""

from __future__ import annotations

import threading
from collections.abc import Callable

Progress = Callable[[str, float], None]
"""A callback for the name of a piece of work and the share of all work that is done, from 0 to 1. Any thread may call it."""


def ignore_progress(name: str, share: float) -> None:
    """Do nothing. This is the `Progress` of callers that do not want to be told."""


def count_reporter(progress: Progress, total: int) -> Callable[[str], None]:
    """Count pieces of work and report the share that is done.

    Args:
        progress: the callback to call each time a piece ends.
        total: how many pieces there are.

    Returns:
        A function to call with the name of each piece when it ends. Any thread may call it.
    """
    lock = threading.Lock()
    done = 0

    def report(name: str) -> None:
        nonlocal done
        with lock:
            done += 1
            progress(name, done / total)  # inside the lock, so that the share never falls

    return report
