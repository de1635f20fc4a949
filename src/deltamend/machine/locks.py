"""Lock files: one process at a time, and never a file that somebody else may have put in their place."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock_file(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock file, which is made where it is not there and is never written to.

    Args:
        path: the file; a link is not followed.
        wait: whether to wait for another process that holds it.

    Raises:
        BlockingIOError: another process holds it, and `wait` is not set.
        OSError: it cannot be made, or is a link, a file with a second name, or no regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise OSError(errno.EINVAL, f"{path.name} is not a file of its own")
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
