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
import fcntl
import json
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from deltamend.checkpoint.manifest import TensorRecord
from deltamend.checkpoint.output_checks import output_errors, work_folder_of
from deltamend.errors import CheckpointError, OutputError, option

_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # of renameat2(2), Linux 3.15


class WorkFolder:
    """The locked work folder of one run.

    Args:
        out: OUT, the folder that is published in the end.
        key: identifies the plan and its inputs; the journal of a run with another key is not continued.
        resume: whether to continue the unfinished run that is beside OUT, where there is one.

    Raises:
        OutputError: the folder cannot be made, another run is using it, or `resume` finds an unfinished run with another key.
    """

    def __init__(self, out: Path, key: str, *, resume: bool) -> None:
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
                self._lock = _lock(self.folder, out)
            except BaseException:
                self._remove_parents()
                raise
        try:
            with output_errors(out):
                self._put_back()
            self.finished = self._take_up(key) if resume else {}
            if not self.finished:
                self._start(key)
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
            for path in self.staged.rglob("*"):
                if path.is_file() and path.suffix != ".safetensors":
                    path.unlink()  # written again, from the sources as they are now
        return finished

    def _holds_the_old_out(self) -> bool:
        """Whether what lies in `staged` is the older OUT, since a publication was killed after the exchange."""
        try:
            return int(self._exchanging.read_text(encoding="utf-8")) != self.staged.stat().st_ino
        except FileNotFoundError:
            return False
        except ValueError:  # killed while it was written, and so before the exchange
            return False

    def _start(self, key: str) -> None:
        with output_errors(self.out):
            for folder in (self.staged, self.parts):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            for name in ("inputs", "exchanging"):
                (self.folder / name).unlink(missing_ok=True)
            self._journal_path.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")

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

    def copy_file(self, source: Path, name: str) -> None:
        """Copy a file's content into the staged output.

        Raises:
            CheckpointError: the source cannot be read.
            OutputError: the copy cannot be written.
        """
        try:
            opened = source.open("rb")
        except OSError as error:
            raise CheckpointError(
                f"{source}: cannot be read ({error.strerror}); check that it is still there"
            ) from error
        path = self.staged / name
        with opened, output_errors(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as copy:
                shutil.copyfileobj(opened, copy)

    def publish(self, *, overwrite: bool) -> None:
        """Publish: let the staged output appear as OUT in one atomic step, and remove the work folder.

        After an error OUT is as it was, and the finished work is there to be resumed. No error is raised once OUT is in place.

        Args:
            overwrite: whether OUT may be replaced when there is something in it.

        Raises:
            OutputError: OUT is no longer empty and may not be replaced, or the rename failed.
        """
        with output_errors(self.out):
            _sync(self.staged)
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
        shutil.rmtree(self.folder, ignore_errors=True)
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
        OutputError: another run is using it.
    """
    folder = work_folder_of(out)
    if folder.exists():
        with output_errors(out):
            lock = _lock(folder, out)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path, out: Path) -> int:
    """Make and lock a folder for this process; the lock ends with the process, also when it is killed."""
    while True:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(f"{out}: another run is writing it; wait for it or give another OUT") from error
        # Between opening and locking, the run that held the lock may have ended and removed the folder.
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


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


def _sync(folder: Path) -> None:
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
