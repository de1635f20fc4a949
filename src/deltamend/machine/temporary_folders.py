"""Folders for work that is deleted when it ends."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltamend.errors import OutputError


@contextmanager
def temporary_folder(within: Path | None, prefix: str = "deltamend-") -> Iterator[Path]:
    """An empty folder, which is deleted with what it holds when the block ends.

    Args:
        within: the folder to make it in; None for the machine's own folder for such things.
        prefix: the beginning of its name.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=prefix, dir=within)
    except OSError as error:
        where = tempfile.gettempdir() if within is None else within
        raise OutputError(f"{where}: no folder can be made in it ({error.strerror}); give another") from error
    with made as folder:
        yield Path(folder)
