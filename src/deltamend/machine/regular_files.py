"""Open a file that somebody else may have made: regular files only, and where it matters never through a link."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path

# Without O_NONBLOCK opening a pipe waits for its other end.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, to be read. A pipe, a socket or a device is never waited for; a link is followed.

    Where many files are open, this process's own limit is raised as far as the system allows, so that those of the output can
    be opened as well.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    return _regular(os.open(path, _READ))


def reason(error: OSError) -> str:
    """Why a file cannot be opened, and what to do about it, to stand behind the file's name."""
    if too_many := too_many_open(error):
        return f"cannot be opened, {too_many}"
    if error.errno == errno.EINVAL:  # which `open_regular` says of pipes, folders and devices
        return "not a regular file; put the file itself in its place"
    return f"cannot be opened ({error.strerror}); check the path and its permissions"


def too_many_open(error: OSError) -> str | None:
    """The cause and the remedy where this process, or the system, has as many files open as it may; else None."""
    if error.errno == errno.ENFILE:
        return "as the system may have no more files open; close other programs, or have its limit raised (fs.file-max)"
    if error.errno == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"as this process may have {most} files open; allow it more (ulimit -n), or store the model in fewer shards"
        )
    return None


def _raise_limit_before_it_is_reached(descriptor: int) -> None:
    """Allow this process as many open files as the system lets it have, once a quarter of what it may have now is open.

    Descriptors are the lowest free numbers, so that a high number means many open files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and descriptor >= soft // 4:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
    _raise_limit_before_it_is_reached(descriptor)
    return descriptor
