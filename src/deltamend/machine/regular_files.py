"""Open a file that somebody else may have made: regular files only, and where it matters never through a link."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# Without O_NONBLOCK opening a pipe waits for its other end.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, to be read. A pipe, a socket or a device is never waited for; a link is followed.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    return _regular(os.open(path, _READ))


def open_without_links(path: Path) -> int:
    """The same, without following any link in the path: a link that was put in since the path was resolved is not followed.

    Args:
        path: as `os.path.realpath` gives it.

    Raises:
        OSError: it cannot be opened, is no regular file, or a part of it is a link.
    """
    folder = os.open(path.anchor, _STEP)
    try:
        for name in path.parts[1:-1]:
            inner = os.open(name, _STEP, dir_fd=folder)
            os.close(folder)
            folder = inner
        return _regular(os.open(path.name, _READ | os.O_NOFOLLOW, dir_fd=folder))
    finally:
        os.close(folder)


def _regular(descriptor: int) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor
