"""Write one file, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltamend.errors import OutputError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path of a file beside `path` to write; on leaving it replaces `path`, once all of it is on the disk.

    Raises:
        OutputError: the file cannot be written. Whatever is raised, nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); check the folder and the disk") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, text as UTF-8; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
