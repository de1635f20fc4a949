"""Write the tensors of one output file in any order, each at the place that the layout gives it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.layout import ShardLayout
from deltamend.checkpoint.output_checks import output_errors


class ShardWriter:
    """Writes the tensors of one output file at their offsets, in any order and from several threads.

    Raises:
        OutputError: the disk has no room for the file; its space is reserved here, before the first tensor is repaired.
    """

    def __init__(self, folder: Path, shard: ShardLayout) -> None:
        self.path = folder / shard.file
        with output_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _reserve(self._descriptor, shard.size)
                self._write_at(0, memoryview(shard.header))
            except BaseException:
                os.close(self._descriptor)
                raise

    def write(self, tensor: StoredTensor, offset: int, data: memoryview) -> None:
        """Write `data` at byte `offset` of the tensor's bytes."""
        with output_errors(self.path):
            self._write_at(tensor.start + offset, data)

    def _write_at(self, position: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], position + done)

    def read(self, tensor: StoredTensor, chunk: int = 1 << 22) -> Iterator[bytes]:
        """The bytes of a tensor as they are on disk, in pieces of at most `chunk` bytes."""
        for position in range(tensor.start, tensor.stop, chunk):
            yield os.pread(self._descriptor, min(chunk, tensor.stop - position), position)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its size, on disk where the file system can."""
    os.ftruncate(descriptor, size)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
            raise
