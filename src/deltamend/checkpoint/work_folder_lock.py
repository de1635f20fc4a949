"""Take hold of a work folder: one run at a time, and never of a folder that is not ours.

What lies in a work folder is deleted, renamed and written to. So it has to be a folder of that very name and not a link, empty or
with the journal of a run, and may hold nothing but what a run puts there; its journal is written first and deleted last.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from deltamend.errors import OutputError

JOURNAL = "journal.jsonl"
NEW_JOURNAL = "journal.new"
"""What the journal is called while its first line is written."""
_FILES = frozenset({JOURNAL, NEW_JOURNAL, "inputs", "exchanging"})
_FOLDERS = frozenset({"out", "parts", "replaced"})


def lock_work_folder(folder: Path, out: Path) -> int:
    """Make a work folder, or take the one that is there, and lock it; the lock ends with the process, also when it is killed.

    Returns:
        A descriptor that holds the lock.

    Raises:
        OutputError: another run holds it, or what is there is a link, a file, or a folder that no run made.
        OSError: it cannot be made.
    """
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # the run that made it has ended
            continue
        except NotADirectoryError as error:
            raise OutputError(
                f"{folder}: is a link or a file, and a folder of this name is needed to make OUT in; remove it, or give another OUT"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, the run that held the lock may have ended and removed the folder.
            if os.fstat(descriptor).st_nlink:
                _refuse_foreign(folder)
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(f"{out}: another run is writing it; wait for it or give another OUT") from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _refuse_foreign(folder: Path) -> None:
    with os.scandir(folder) as listed:
        entries = {entry.name: entry.stat(follow_symlinks=False) for entry in listed}
    for name, found in entries.items():
        is_file = name in _FILES and stat.S_ISREG(found.st_mode) and found.st_nlink == 1
        if not is_file and not (name in _FOLDERS and stat.S_ISDIR(found.st_mode)):
            raise OutputError(
                f"{folder / name}: was not made by a run, and everything in {folder.name} is deleted in the end; move it away, or give another OUT"
            )
    begun = set(entries) <= {NEW_JOURNAL}  # by a run that was killed at once
    if not begun and not _is_journal(folder / JOURNAL):
        raise OutputError(
            f"{folder}: holds no journal of a run, and everything in it would be deleted; move it away, or give another OUT"
        )


def _is_journal(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            found = json.loads(file.readline(1 << 16))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("key"), str)


def refuse_links_in(folder: Path) -> None:
    """Refuse to go on writing into files that are links or have a second name, through which others would be written to.

    Raises:
        OutputError: there is one.
    """
    for path in folder.rglob("*"):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) and not (stat.S_ISREG(found.st_mode) and found.st_nlink == 1):
            raise OutputError(
                f"{path}: is a link or no regular file, so the unfinished run is not continued; remove it"
            )


def start_journal(folder: Path, key: str) -> None:
    """Write the first line of a journal, which replaces that of any earlier run.

    Raises:
        OSError: it cannot be written.
    """
    new = folder / NEW_JOURNAL
    new.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
    new.replace(folder / JOURNAL)


def remove_work_folder(folder: Path) -> str:
    """Remove a work folder with its content, the journal last; what cannot be removed is left there.

    Returns:
        Why something is left; "" where nothing is.
    """
    reasons: list[str] = []

    def failed(_function: object, _path: str, raised: tuple[object, BaseException, object]) -> None:
        reasons.append(getattr(raised[1], "strerror", None) or str(raised[1]))

    with suppress(FileNotFoundError):
        names = sorted(path.name for path in folder.iterdir())
        for name in sorted(names, key=lambda name: name == JOURNAL):
            path = folder / name
            if name == JOURNAL and reasons:
                break
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, onerror=failed)
            else:
                path.unlink(missing_ok=True)
        if not reasons:
            folder.rmdir()
    return reasons[0] if reasons else ""
