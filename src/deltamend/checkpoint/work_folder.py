"""Where the output is made: a sibling folder that is renamed to OUT when, and only when, it is whole.

.NAME.deltamend-partial/     beside OUT, so that the rename stays on one file system; locked while a run uses it
    journal.jsonl            first line: the plan; then one line for each finished tensor
    out/                     becomes OUT
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from deltamend.checkpoint.layout import ShardLayout
from deltamend.checkpoint.manifest import TensorRecord
from deltamend.checkpoint.open import StoredTensor
from deltamend.errors import OutputError

_RENAME_EXCHANGE = 2  # renameat2(2), Linux 3.15


class WorkFolder:
    """The locked work folder of one run.

    Args:
        out: the folder that will appear.
        plan_sha256: what identifies the plan; a journal of another plan is not taken up.
        resume: take up the journal where there is one, instead of starting again.

    Raises:
        OutputError: the folder cannot be made, another run is using it, or `resume` finds the journal of another plan.
    """

    def __init__(self, out: Path, plan_sha256: str, *, resume: bool) -> None:
        self.out = out
        self.folder = out.with_name(f".{out.name}.deltamend-partial")
        self.staged = self.folder / "out"
        self._journal_path = self.folder / "journal.jsonl"
        self._journal_lock = threading.Lock()
        with _output_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(exist_ok=True)
            self._lock = _lock(self.folder, out)
        try:
            self.finished = self._take_up(plan_sha256) if resume else {}
            if not self.finished:
                self._start(plan_sha256)
        except BaseException:
            os.close(self._lock)
            raise

    def _take_up(self, plan_sha256: str) -> dict[str, TensorRecord]:
        """Records of the tensors an interrupted run of the same plan had finished."""
        try:
            first, *lines = self._journal_path.read_text(encoding="utf-8").splitlines()
            plan = json.loads(first)["plan_sha256"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}
        if plan != plan_sha256:
            raise OutputError(
                f"{self.out}: the unfinished run beside it had other inputs or options; repeat those, or start again without --resume"
            )
        finished: dict[str, TensorRecord] = {}
        for line in lines:
            with suppress(ValidationError):  # a line cut off by the kill
                record = TensorRecord.model_validate_json(line)
                finished[record.name] = record
        return finished

    def _start(self, plan_sha256: str) -> None:
        with _output_errors(self.out):
            shutil.rmtree(self.staged, ignore_errors=True)
            self.staged.mkdir()
            self._journal_path.write_text(json.dumps({"plan_sha256": plan_sha256}) + "\n", encoding="utf-8")

    def record(self, record: TensorRecord) -> None:
        """Note a tensor as finished; its bytes must already be written."""
        with self._journal_lock, _output_errors(self.out), self._journal_path.open("a", encoding="utf-8") as journal:
            journal.write(record.model_dump_json() + "\n")

    def write_file(self, name: str, data: bytes) -> None:
        """Write a small file, name with forward slashes, into the staged output."""
        path = self.staged / name
        with _output_errors(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def copy_file(self, source: Path, name: str) -> None:
        """Copy a file's content into the staged output."""
        path = self.staged / name
        with _output_errors(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)

    def publish(self) -> None:
        """Let the staged output appear as OUT in one step, replacing what was there, and remove the work folder."""
        with _output_errors(self.out):
            _sync(self.staged)
            if self.out.exists():
                _exchange(self.staged, self.out)
            else:
                self.staged.rename(self.out)
            _sync_folder(self.out.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the work folder and all that was made in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)


class ShardWriter:
    """Writes tensors of one output file at their offsets, in any order, from several threads.

    Raises:
        OutputError: the disk has no room for the file, which is found out before the first tensor is filtered.
    """

    def __init__(self, folder: Path, shard: ShardLayout) -> None:
        self.path = folder / shard.file
        with _output_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _reserve(self._descriptor, shard.size)
                os.pwrite(self._descriptor, shard.header, 0)
            except BaseException:
                os.close(self._descriptor)
                raise

    def write(self, tensor: StoredTensor, offset: int, data: memoryview) -> None:
        """Write `data` at byte `offset` of the tensor's bytes."""
        position, done = tensor.start + offset, 0
        with _output_errors(self.path):
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], position + done)

    def read(self, tensor: StoredTensor, chunk: int = 1 << 22) -> Iterator[bytes]:
        """The tensor's bytes as they are on disk, piece by piece."""
        for position in range(tensor.start, tensor.stop, chunk):
            yield os.pread(self._descriptor, min(chunk, tensor.stop - position), position)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def check_output(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse an OUT that would harm an input or something that is already there.

    Raises:
        OutputError: OUT is or lies inside an input, holds an input, is a file, or is not empty without `overwrite`.
    """
    real = Path(os.path.realpath(out))
    for source in inputs:
        other = Path(os.path.realpath(source))
        if real.is_relative_to(other) or other.is_relative_to(real):
            raise OutputError(f"{out}: is, lies inside or holds the input {source}; give a folder outside the inputs")
    with _output_errors(out):
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise OutputError(f"{out}: exists and is not a folder; give another OUT")
        if not overwrite and out.is_dir() and any(out.iterdir()):
            raise OutputError(
                f"{out}: exists and is not empty; give another OUT, or --overwrite to replace it once the new one is whole"
            )


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise OutputError(f"{path}: the disk is full; free space there or give another OUT") from error
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); check its permissions or give another OUT"
        ) from error


def _lock(folder: Path, out: Path) -> int:
    """Lock a folder for this process; the lock ends with the process, also when it is killed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OutputError(f"{out}: another run is writing it; wait for it or give another OUT") from error
    return descriptor


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its size, on disk where the file system can."""
    os.ftruncate(descriptor, size)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
            raise


def _exchange(staged: Path, out: Path) -> None:
    """Put `staged` in the place of the existing folder `out`, which takes the place of `staged`."""
    library = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(staged), os.fsencode(out))
    if hasattr(library, "renameat2") and library.renameat2(-100, names[0], -100, names[1], _RENAME_EXCHANGE) == 0:
        return
    # A file system without the exchange: two renames, the first taken back when the second fails.
    aside = staged.with_name("replaced")
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
        _sync_folder(path)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_sync_folder = _sync_path
