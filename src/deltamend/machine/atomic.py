"""Write a file or a folder so that it appears whole or not at all."""

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

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path of a file to write; on leaving it replaces `path`, once all of it is on the disk.

    It lies in a folder of its own beside `path`, so that no two writers share it, and so that what safetensors writes
    beside the file it is given goes with it. The file is as readable as the umask lets any other be.

    Raises:
        OutputError: the file cannot be written, by safetensors either. Whatever is raised, nothing is left behind.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", suffix=".part", dir=path.parent) as folder:
            temporary = Path(folder, path.name)
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            temporary.chmod(mode)  # safetensors puts a private file in its place
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except _write_errors() as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(f"{path}: cannot be written ({reason}); check the folder and the disk") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, text as UTF-8; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _write_errors() -> tuple[type[Exception], ...]:
    """OSError, and what safetensors raises in its place; who never imported it cannot have met that."""
    safetensors = sys.modules.get("safetensors")
    return (OSError,) if safetensors is None else (OSError, safetensors.SafetensorError)


@contextmanager
def publish(folder: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `folder` to write into; rename it to `folder` on success, delete it on any failure.

    A run that is cut off leaves at most a `.part` folder behind, and nothing ever reads one of those. OUT of a repair is
    published by `checkpoint.work_folder` instead, which can resume, syncs to the disk, and exchanges folders in one step.

    Args:
        folder: what appears, whole.
        keep: where `folder` is there by then, let it stay and drop what was written, as another process that made the
            same may be at work in it; otherwise it is replaced.

    Raises:
        OutputError: the folder cannot be made or put in place, or the disk is full; any other error of the caller's own is
            raised as it is.
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
                with suppress(FileNotFoundError):  # another process is replacing it too
                    folder.rename(aside / "replaced")
            try:
                part.rename(folder)
            except OSError as error:
                # Another process has published the same: before this one, or in the moment between the two renames.
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                    raise


def disk_is_full(error: Exception) -> bool:
    """Whether `error` says that a file may not grow: an OSError, or safetensors' own, which has the number in its text."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    found = re.search(r"\(os error (\d+)\)", str(error))
    return found is not None and int(found[1]) in _FULL


def remove(folder: Path) -> None:
    """Delete a folder that is read where it is there: it is whole or gone, also when the run is cut off meanwhile."""
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
    # Results of a study are published too; the variable says nothing of where those go.
    elsewhere = ", or set DELTAMEND_CACHE to another" if folder.is_relative_to(default_cache_dir()) else ""
    return OutputError(f"{folder}: cannot be written ({reason}); check the disk and {folder.parent}{elsewhere}")
