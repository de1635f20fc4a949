"""Write one file, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from deltamend.errors import OutputError


def write_whole(path: Path, content: str | bytes) -> None:
    """Put `content` at `path`, replacing what is there only once all of it is on the disk; text is written as UTF-8.

    Raises:
        OutputError: the file cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); check the folder and the disk") from error
