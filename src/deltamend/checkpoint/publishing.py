"""The work folder: a sibling of OUT in which the output is made, and which is published as OUT once it is complete.

.NAME.deltamend-partial/     beside OUT, so that publishing is a rename on one file system; locked while a run uses it
    journal.jsonl            first line: what identifies the plan; then one line for each finished tensor
    inputs                   a hash of the content of all inputs
    exchanging               while out/ is exchanged with an older OUT: the inode number of the new output
    out/                     becomes OUT
    parts/                   for an adapter: its factors of each tensor, until the adapter's file can be laid out

`machine.atomic.publish` is the other way to publish a folder. It serves folders that can be made again, such as those of the
cache: it neither resumes nor syncs to the disk, and where it replaces a folder there is a moment without one. Here the
content is synced before the rename, OUT is exchanged in one system call where the file system can do that, and every state in
which a kill can leave the work folder is one that the next run continues from.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import json
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from deltamend.checkpoint.manifest import FileRecord, TensorRecord
from deltamend.checkpoint.output_checks import output_errors, work_folder_of
from deltamend.checkpoint.sidecars import Sidecar, pieces_of
from deltamend.checkpoint.work_folder_lock import (
    lock_work_folder,
    refuse_links_in,
    remove_work_folder,
    start_journal,
)
from deltamend.errors import CheckpointError, OutputError, option

_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # of renameat2(2), Linux 3.15


class WorkFolder:
    """The locked work folder of one run.

    Args:
        out: OUT, the folder that is published in the end.
        key: identifies the plan and its inputs; the journal of a run with another key is not continued.
        resume: whether to continue the unfinished run that is beside OUT, where there is one.
        keep_parts: whether a run that is continued finds `parts` as it was, also where no tensor was finished.

    Raises:
        OutputError: the folder cannot be made, another run is using it, or `resume` finds an unfinished run with another key.
    """

    def __init__(self, out: Path, key: str, *, resume: bool, keep_parts: bool = False) -> None:
        self.out = Path(os.path.abspath(out))  # noqa: PTH100 - "." cannot be renamed to
        self.folder = work_folder_of(out)
        self.staged = self.folder / "out"
        self.parts = self.folder / "parts"
        self._replaced = self.folder / "replaced"
        self._exchanging = self.folder / "exchanging"
        self._journal_path = self.folder / "journal.jsonl"
        self._journal_lock = threading.Lock()
        parent = self.folder.parent
        self._made_parents = [place for place in (parent, *parent.parents) if not place.exists()]
        with output_errors(out):
            try:
                parent.mkdir(parents=True, exist_ok=True)
                self._lock = lock_work_folder(self.folder, out)
            except BaseException:
                self._remove_parents()
                raise
        try:
            with output_errors(out):
                self._put_back()
            self.finished = self._take_up(key) if resume else {}
            if not self.finished:
                self._start(key, keep_parts=keep_parts and resume and self._is_of(key))
        except BaseException as error:
            if isinstance(error, OutputError) and not resume:
                self.discard()
            os.close(self._lock)
            raise

    def _put_back(self) -> None:
        """Put the old OUT back if a kill came between the two renames; delete it if the new output is in place."""
        if self._replaced.exists():
            if self.out.exists():
                shutil.rmtree(self._replaced)
            else:
                self._replaced.rename(self.out)

    def _take_up(self, key: str) -> dict[str, TensorRecord]:
        """The records of the tensors that an interrupted run of the same plan finished, by name."""
        if not self.staged.is_dir() or self._holds_the_old_out():
            return {}
        try:
            first, *lines = self._journal_path.read_text(encoding="utf-8").splitlines()
            found = json.loads(first)["key"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}
        if found != key:
            raise OutputError(
                f"{self.out}: the unfinished run beside it had other inputs or options; give the same again, or start "
                f"anew without {option('resume')}"
            )
        finished: dict[str, TensorRecord] = {}
        for line in lines:
            with suppress(ValidationError):  # a line cut off by the kill
                record = TensorRecord.model_validate_json(line)
                finished[record.name] = record
        with output_errors(self.out):
            refuse_links_in(self.staged)
            if self.parts.is_dir():
                refuse_links_in(self.parts)
            for path in self.staged.rglob("*"):
                if path.is_file() and path.suffix != ".safetensors":
                    path.unlink()  # written again, from the sources as they are now
        return finished

    def _holds_the_old_out(self) -> bool:
        """Whether what lies in `staged` is the older OUT, since a publication was killed after the exchange."""
        noted = _noted(self._exchanging)
        return noted is not None and noted != self.staged.stat().st_ino

    def _is_of(self, key: str) -> bool:
        """Whether the journal is of a run with this key."""
        try:
            return bool(json.loads(self._journal_path.read_text(encoding="utf-8").splitlines()[0])["key"] == key)
        except (OSError, ValueError, IndexError, KeyError, TypeError):
            return False

    def _start(self, key: str, *, keep_parts: bool) -> None:
        with output_errors(self.out):
            keep_parts = keep_parts and self.parts.is_dir()
            if keep_parts:
                refuse_links_in(self.parts)
            start_journal(self.folder, key)
            for folder in (self.staged,) if keep_parts else (self.staged, self.parts):
                shutil.rmtree(folder, ignore_errors=True)
                if folder.exists():
                    raise OutputError(
                        f"{folder}: is left of an earlier run and cannot be deleted; delete it, or give another OUT"
                    )
                folder.mkdir()
            for name in ("inputs", "exchanging"):
                (self.folder / name).unlink(missing_ok=True)

    def keep_to_inputs(self, digest: str) -> None:
        """Record the content of the inputs, or check that it is the content that the resumed run had.

        Raises:
            OutputError: the resumed run read other weights, though their modification times were the same.
        """
        path = self.folder / "inputs"
        with output_errors(self.out):
            if self.finished and (not path.exists() or path.read_text(encoding="utf-8") != digest):
                raise OutputError(
                    f"{self.out}: the weights have changed since the unfinished run beside it; start anew without {option('resume')}"
                )
            path.write_text(digest, encoding="utf-8")

    def record(self, record: TensorRecord) -> None:
        """Record a tensor as finished; its bytes must already be written."""
        with self._journal_lock, output_errors(self.out), self._journal_path.open("a", encoding="utf-8") as journal:
            journal.write(record.model_dump_json() + "\n")

    def write_file(self, name: str, data: bytes) -> None:
        """Write a small file into the staged output; `name` is its path there, with forward slashes."""
        path = self.staged / name
        with output_errors(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def copy_file(self, sidecar: Sidecar) -> FileRecord:
        """Copy a file's content into the staged output.

        Returns:
            Its record.

        Raises:
            CheckpointError: the source cannot be read, or is not what it was when the plan was made.
            OutputError: the copy cannot be written.
        """
        path = self.staged / sidecar.name
        digest = hashlib.sha256()
        with output_errors(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as copy:
                for piece in pieces_of(sidecar):
                    digest.update(piece)
                    copy.write(piece)
        if digest.hexdigest() != sidecar.sha256:
            raise CheckpointError(f"{sidecar.source}: changed during the run; start again when nothing writes to it")
        return FileRecord(name=sidecar.name, size=sidecar.size, sha256=sidecar.sha256)

    def publish(self, *, overwrite: bool) -> Path | None:
        """Publish: let the staged output appear as OUT in one atomic step, and remove the work folder.

        After an error OUT is as it was, and the finished work is there to be resumed. No error is raised once OUT is in place.

        Args:
            overwrite: whether OUT may be replaced when there is something in it.

        Returns:
            Where the older OUT is, if it could not be removed.

        Raises:
            OutputError: OUT is no longer empty and may not be replaced, or the rename failed.
        """
        with output_errors(self.out):
            sync_folder(self.staged)
            parent = os.open(self.folder.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with output_errors(self.out):
                if overwrite and self.out.exists():
                    # The older OUT lands where the staged output was. The next run must not continue from that.
                    self._exchanging.write_text(str(self.staged.stat().st_ino), encoding="utf-8")
                    _sync_path(self._exchanging)
                    _sync_path(self.folder)
                    _exchange(self.staged, self.out, self._replaced)
                else:
                    self._rename()
            with suppress(OSError):  # some file systems cannot sync a folder, and OUT is there
                os.fsync(parent)
        finally:
            os.close(parent)
        self.discard()
        return self._leftover()

    def _leftover(self) -> Path | None:
        """What is left of an older OUT, moved out of the way of the next run, which needs the work folder."""
        left = next((place for place in (self._replaced, self.staged) if place.is_dir()), None)
        if left is None:
            return None
        kept = next(
            place
            for number in itertools.count(1)
            if not os.path.lexists(place := self.out.with_name(f"{self.out.name}.replaced-{number}"))
        )
        try:
            left.rename(kept)
        except OSError:
            return left
        remove_work_folder(self.folder)
        return kept

    def _rename(self) -> None:
        try:
            self.staged.rename(self.out)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            raise OutputError(
                f"{self.out}: something was put there during the run; the finished work is kept. Run again with "
                f"{option('resume', 'True')} {option('overwrite', 'True')} to replace it, or empty it and run again with {option('resume', 'True')}"
            ) from error

    def discard(self) -> None:
        """Remove the work folder with its content, and the folders above it that this run made and that are empty."""
        with suppress(OSError):
            remove_work_folder(self.folder)
        self._remove_parents()

    def _remove_parents(self) -> None:
        with suppress(OSError):  # if one is not empty, the folders above it are not empty either
            for place in self._made_parents:
                place.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)


def remove_leftovers(out: Path) -> None:
    """Remove the work folder of a run that was killed when OUT was already whole.

    Raises:
        OutputError: another run is using it, or no run made it.
    """
    folder = work_folder_of(out)
    if os.path.lexists(folder):
        with output_errors(out):
            lock = lock_work_folder(folder, out)
        remove_work_folder(folder)
        os.close(lock)


def finish_exchange(out: Path, *, resume: bool) -> None:
    """Where a kill came between the two renames that replace OUT: put the new output in place, or the old OUT back.

    Args:
        out: OUT, of which there is none then.
        resume: whether the user wants the killed run to be finished; otherwise the old OUT is put back.

    Raises:
        OutputError: another run is using the work folder, or no run made it, or a rename failed.
    """
    folder = work_folder_of(out)
    if os.path.lexists(out) or not (folder / "replaced").is_dir():
        return
    with output_errors(out):
        lock = lock_work_folder(folder, out)
        try:
            whole = (
                resume and (folder / "out").is_dir() and _noted(folder / "exchanging") == (folder / "out").stat().st_ino
            )
            (folder / ("out" if whole else "replaced")).rename(out)
        finally:
            os.close(lock)


def _noted(exchanging: Path) -> int | None:
    """The inode number of the new output, as it was noted before the exchange; None where none was."""
    try:
        return int(exchanging.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # ValueError: killed while it was written, and so before the exchange
        return None


def _exchange(staged: Path, out: Path, aside: Path) -> None:
    """Put `staged` in the place of the existing folder `out`, which takes the place of `staged`, or goes to `aside`."""
    library = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(staged), os.fsencode(out))
    if (
        hasattr(library, "renameat2")
        and library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
    ):
        return
    # A file system without the exchange: two renames, the first taken back when the second fails, or by the next run.
    out.rename(aside)
    try:
        staged.rename(out)
    except BaseException:
        aside.rename(out)
        raise


def sync_folder(folder: Path) -> None:
    """Bring a folder's files and names to the disk, so that the rename cannot come before their content."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _sync_path(path)
    for path in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
        _sync_path(path)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
