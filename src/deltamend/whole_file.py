"""Write one file, whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltamend.errors import OutputError


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
