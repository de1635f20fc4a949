"""Atomic writes: a file or folder appears complete or not at all.

What is written lies in a hidden folder beside its place until it is complete. The process that made that folder holds a lock on
it, so that what a killed process left is known by its lock being free, and is deleted by the next one that writes there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from deltamend.errors import OutputError
from deltamend.machine.cache import default_cache_dir

_SUFFIX = ".part"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers that say that a file may not grow: the disk, the quota or the largest size of a file is reached."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write; when the block ends it is flushed to disk and replaces `path`.

    The temporary file lies in a folder of its own beside `path`. No other writer uses that folder, and the temporary files
    that safetensors makes beside its target are deleted with it. The finished file has the permissions that the umask gives
    to any new file.

    Raises:
        OutputError: the file cannot be written. Errors of safetensors count as well. After any error `path` is as it was
            before, and no temporary file is left.
    """
    try:
        with folder_beside(path) as folder:
            temporary = folder / path.name
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            temporary.chmod(mode)  # safetensors replaces it by a file that only its owner may read
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except _write_errors() as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(f"{path}: cannot be written ({reason}); check the folder and the disk") from error


def write_whole(path: Path, content: str | bytes) -> None:
    r"""Write `content` to `path` atomically; see `whole_file`.

    Args:
        path: the file.
        content: text is written as UTF-8; what that cannot hold, as of the name of a folder that is not UTF-8, as `\udce9`.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def _write_errors() -> tuple[type[Exception], ...]:
    """OSError, and the error that safetensors raises instead of it, if safetensors is imported at all."""
    safetensors = sys.modules.get("safetensors")
    return (OSError,) if safetensors is None else (OSError, safetensors.SafetensorError)


@contextmanager
def publish(folder: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to write into; rename it to `folder` on success, delete it on any failure.

    A process that is killed meanwhile leaves at most a `.part` folder behind, which is never read; see `folder_beside`. The output of a repair is
    published by `checkpoint.publishing` instead, which can also resume, syncs to the disk, and exchanges folders in one step.

    Args:
        folder: the folder that appears once it is complete.
        keep: what to do if `folder` exists by the time the new one is complete. True keeps the existing folder and drops the
            new one, because another process that made the same folder may already be using it. False replaces it.

    Raises:
        OutputError: the folder cannot be created or put in place, or the disk is full. Other errors that the block raises
            are passed on unchanged.
    """
    with _output_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _beside(folder) as aside:
        part = aside / "new"
        with _output_errors(folder):
            part.mkdir()
        try:
            yield part
        except Exception as error:
            if disk_is_full(error):
                raise _unwritten(folder, error) from error
            raise
        with _output_errors(folder):
            if not keep and folder.is_dir():
                with suppress(FileNotFoundError):  # another process is replacing it at the same time
                    folder.rename(aside / "replaced")
            try:
                part.rename(folder)
            except OSError as error:
                # Another process has published the same folder: before this one, or between the two renames.
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                    raise


def disk_is_full(error: Exception) -> bool:
    """Whether an error says that the disk is full.

    Args:
        error: an OSError, or an error of safetensors, which holds the error number in its text.
    """
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    found = re.search(r"\(os error (\d+)\)", str(error))
    return found is not None and int(found[1]) in _DISK_FULL


def remove(folder: Path) -> None:
    """Delete a folder so that a reader finds it complete or not at all, even if this process is killed half-way."""
    with _beside(folder) as aside:
        folder.rename(aside / "removed")


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` for what is to become `path`; it is deleted at the end.

    What killed processes left beside the same path is deleted first; in the cache, whatever path it was for.

    Raises:
        OSError: the folder cannot be made.
    """
    own = f".{path.name}-"
    _sweep(path.parent, "." if path.parent == default_cache_dir() else own)
    made, lock = _made_and_locked(path.parent, own)
    try:
        yield made
    finally:
        try:
            shutil.rmtree(made, ignore_errors=True)
        finally:
            os.close(lock)


def _made_and_locked(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=parent))
        # Another process may have taken it for a leftover in the moment before it was locked.
        if (lock := _locked(made, unlocked=True)) is not None:
            return made, lock


def _locked(folder: Path, *, unlocked: bool = False) -> int | None:
    """A descriptor of a folder that holds its lock; None where another process holds it, or the folder is gone.

    Args:
        folder: the folder.
        unlocked: whether to go on without a lock where the file system has none.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        if unlocked:
            return descriptor
        os.close(descriptor)
        return None
    if os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)
    return None


def _sweep(parent: Path, prefix: str) -> None:
    """Delete the folders that `folder_beside` made with this prefix and whose process was killed; what fails is left there."""
    with suppress(OSError):
        for left in list(parent.iterdir()):
            ours = left.name.startswith(prefix) and left.name.endswith(_SUFFIX)
            if ours and (lock := _locked(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    with ExitStack() as held:
        with _output_errors(folder):
            aside = held.enter_context(folder_beside(folder))
        yield aside


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritten(folder, error) from error


def _unwritten(folder: Path, error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    # DELTAMEND_CACHE moves the cache alone; results of a study, which are published in the same way, lie elsewhere.
    elsewhere = ", or set DELTAMEND_CACHE to another" if folder.is_relative_to(default_cache_dir()) else ""
    return OutputError(f"{folder}: cannot be written ({reason}); check the disk and {folder.parent}{elsewhere}")
