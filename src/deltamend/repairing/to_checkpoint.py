"""Where one tensor of the output goes: its place in a file, hashed as it is written."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import xxhash

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.checkpoint.hashing import tensor_hash
from deltamend.checkpoint.shard_writer import ShardWriter
from deltamend.matrices.buffers import Array, bytes_of
from deltamend.matrices.views import StoredMatrix


class FileSink:
    """Writes one tensor to its place and hashes what it writes."""

    def __init__(self, writer: ShardWriter, tensor: StoredTensor, stopped: threading.Event) -> None:
        self.dtype = NUMPY_DTYPES[tensor.dtype]
        self._writer, self._tensor, self._stopped = writer, tensor, stopped
        self._columns = StoredMatrix.view_shape(tensor)[1]
        self._hash = xxhash.xxh3_128()
        self._in_order, self._next_row = True, 0

    def write_rows(self, start: int, values: Array) -> None:
        """See `Sink.write_rows`."""
        if self._stopped.is_set():
            raise CancelledError
        data = bytes_of(values)
        self._in_order &= start == self._next_row
        self._next_row = start + values.shape[0]
        self._writer.write(self._tensor, start * self._columns * self.dtype.itemsize, data)
        self._hash.update(data)

    def write_columns(self, start: int, values: Array, row: int = 0) -> None:
        """See `Sink.write_columns`; one short write for each row."""
        if self._stopped.is_set():
            raise CancelledError
        self._in_order = False
        for number, part in enumerate(values, row):
            self._writer.write(self._tensor, (number * self._columns + start) * self.dtype.itemsize, bytes_of(part))

    def xxh3(self) -> str:
        """XXH3-128 of the tensor's bytes; read back where they were not written in order."""
        return self._hash.hexdigest() if self._in_order else tensor_hash(self._writer.read(self._tensor))
