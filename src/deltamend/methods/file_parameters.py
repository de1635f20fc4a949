"""Parameters that are files: written down by name and content, which mean the same on every machine."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import get_args

from pydantic.fields import FieldInfo

from deltamend.errors import MethodError


def name_and_content(path: Path, method: str) -> str:
    """What identifies a file anywhere: a path says nothing on another machine, and what lies there may change.

    Raises:
        MethodError: there is no such file.
    """
    if not path.is_file():
        raise MethodError(f"method {method!r}: there is no file {path}; make one with `deltamend calibrate`")
    return f"{path.name} sha256:{_hashed(path, path.stat().st_mtime_ns)}"


def takes_a_file(field: FieldInfo) -> bool:
    """Whether a parameter is a path, or a path or nothing."""
    kinds = (field.annotation, *get_args(field.annotation))
    return any(getattr(kind, "__origin__", kind) is Path for kind in kinds)  # `Annotated[Path, …]` too


@lru_cache(maxsize=4)
def _hashed(path: Path, mtime_ns: int) -> str:  # noqa: ARG001 - read again when the file changes
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
