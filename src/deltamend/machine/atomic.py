"""Atomic writes: a file or folder appears complete or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltamend.errors import OutputError
from deltamend.machine.cache import default_cache_dir

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
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", suffix=".part", dir=path.parent) as folder:
            temporary = Path(folder, path.name)
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
    """Write `content` to `path` atomically, text as UTF-8; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _write_errors() -> tuple[type[Exception], ...]:
    """OSError, and the error that safetensors raises instead of it, if safetensors is imported at all."""
    safetensors = sys.modules.get("safetensors")
    return (OSError,) if safetensors is None else (OSError, safetensors.SafetensorError)


@contextmanager
def publish(folder: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to write into; rename it to `folder` on success, delete it on any failure.

    A process that is killed meanwhile leaves at most a `.part` folder behind, which is never read. The output of a repair is
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
def _beside(folder: Path) -> Iterator[Path]:
    with _output_errors(folder):
        made = tempfile.TemporaryDirectory(prefix=f".{folder.name}-", suffix=".part", dir=folder.parent)
    with made as aside:
        yield Path(aside)


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
