"""How long work tells its caller how far it has come."""

from __future__ import annotations

import threading
from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called when a piece of work ends, from any thread: its name, and the share of all work that is done, from 0 to 1."""


def ignore_progress(name: str, share: float) -> None:
    """Do nothing: the `Progress` of callers that do not want to hear of it."""


def count_reporter(progress: Progress, total: int) -> Callable[[str], None]:
    """A function to call with the name of each of `total` pieces of work as it ends, from any thread."""
    lock = threading.Lock()
    done = 0

    def report(name: str) -> None:
        nonlocal done
        with lock:
            done += 1
            share = done / total
        progress(name, share)

    return report
