"""SHA-256 of files and of pieces of bytes, as `sha256sum` prints it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from deltamend.checkpoint.manifest import FileRecord
from deltamend.errors import CheckpointError

_PIECE = 1 << 22


def hash_file(path: Path, name: str) -> FileRecord:
    """Read a file to its end and describe it under `name`.

    Raises:
        CheckpointError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as stream:
            for piece in iter(partial(stream.read, _PIECE), b""):
                digest.update(piece)
            return FileRecord(name=name, size=stream.tell(), sha256=digest.hexdigest())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the disk") from error


def sha256_of(pieces: Iterable[bytes]) -> str:
    """Hash pieces of bytes, one after another."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
