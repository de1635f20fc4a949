"""What a study writes in its folder: under which names, and that none of it is a link to somewhere else."""

from __future__ import annotations

import stat
from pathlib import Path

from deltamend.errors import OutputError

FOLDERS = ("models", "cells", "bases", "exams", "results", ".locks")
"""The folders that a study makes in its own."""


def file_name(name: str) -> str:
    """The name of a file or folder for a name of several parts; different names have different ones.

    Args:
        name: its parts are divided by /, which stands as two underscores in the file's name. In a part that could be taken for
            several, because of two underscores or one at its ends, every underscore stands as %5F.
    """
    return "__".join(_part(part) for part in name.split("/"))


def _part(part: str) -> str:
    ambiguous = "__" in part or part.startswith("_") or part.endswith("_")
    return part.replace("_", "%5F") if ambiguous else part


def refuse_links(out: Path) -> None:
    """Refuse a study's folder in which something that the study writes or deletes is a link, or no folder where one belongs.

    Raises:
        OutputError: it is named.
    """
    for folder in (out / name for name in FOLDERS):
        for path in (folder, *folder.rglob("*")):
            try:
                kind = path.lstat().st_mode
            except FileNotFoundError:
                continue
            except OSError as error:
                raise OutputError(
                    f"{path}: cannot be looked at ({error.strerror}); check the study's folder"
                ) from error
            if stat.S_ISLNK(kind) or (path == folder and not stat.S_ISDIR(kind)):
                raise OutputError(
                    f"{path}: is a link or no folder, and the study would write to or delete what it leads to; move it away"
                )
