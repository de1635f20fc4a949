"""A folder of the cache that holds the hashes of its own files, so that one that was damaged is noticed and made again."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import xxhash

from deltamend.machine.atomic import publish, remove

CONTENTS_FILE = ".deltamend-contents.json"
"""XXH3-128 of every other file of the folder, by its path in it."""
_PIECE = 1 << 22


def checked_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made now if it is not there or any of its files is not as it was made.

    Args:
        folder: where it belongs.
        make: writes the files into an empty folder.

    Returns:
        `folder`, whole.

    Raises:
        OutputError: the cache cannot be written. Errors of `make` are passed on.
    """
    if not is_intact(folder):
        if os.path.lexists(folder):
            remove(folder)
        with publish(folder, keep=True) as part:
            make(part)
            (part / CONTENTS_FILE).write_text(json.dumps(_hashes(part), indent=1), encoding="utf-8")
    return folder


def is_intact(folder: Path) -> bool:
    """Whether a folder holds the files that its own list names, and nothing else."""
    try:
        known = json.loads((folder / CONTENTS_FILE).read_text(encoding="utf-8"))
        return not folder.is_symlink() and bool(known == _hashes(folder))
    except (OSError, ValueError, RecursionError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if stat.S_ISREG(path.lstat().st_mode) and name != CONTENTS_FILE:
            found[name] = _xxh3(path)
        elif name != CONTENTS_FILE and not stat.S_ISDIR(path.lstat().st_mode):
            found[name] = "not a file"
    return found


def _xxh3(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
