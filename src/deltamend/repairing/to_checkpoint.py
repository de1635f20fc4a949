"""Write a repair as a checkpoint: each tensor goes to its place in a shard, and is hashed while it is written."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack

import xxhash

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.checkpoint.hashing import hash_file, tensor_hash
from deltamend.checkpoint.layout import ShardLayout
from deltamend.checkpoint.manifest import FileRecord, InputRecord, TensorRecord
from deltamend.checkpoint.publishing import WorkFolder
from deltamend.checkpoint.shard_writer import ShardWriter
from deltamend.inputs.pairing import TensorPair
from deltamend.machine.threads import Workers
from deltamend.matrices.buffers import Array, bytes_of
from deltamend.matrices.views import StoredMatrix
from deltamend.repairing.outputs import WrittenTensor
from deltamend.repairing.plan import RepairPlan
from deltamend.repairing.tensor_repairer import TensorRepairer


class CheckpointOutput:
    """Writes every tensor into the shards in the work folder; an implementation of `FolderOutput`.

    Args:
        plan: the plan of the repair.
        work: the work folder.
        stopped: an event that tells the writers to end early.

    Raises:
        OutputError: a file cannot be created, or the disk has too little space for it.
    """

    def __init__(self, plan: RepairPlan, work: WorkFolder, stopped: threading.Event) -> None:
        self._plan, self._work, self._stopped = plan, work, stopped
        self._targets = {tensor.name: tensor for shard in plan.layout.shards for tensor in shard.tensors}
        self._writers: dict[str, ShardWriter] = {}
        with ExitStack() as opening:
            for shard in plan.layout.shards:
                writer = self._writers[shard.file] = ShardWriter(work.staged, shard)
                opening.callback(writer.close)
            self._open_files = opening.pop_all()

    def is_intact(self, pair: TensorPair, record: TensorRecord) -> bool:
        """See `FolderOutput.is_intact`."""
        target = self._targets[pair.name]
        return record.xxh3 == tensor_hash(self._writers[target.file].read(target))

    def write(self, pair: TensorPair, repairer: TensorRepairer) -> WrittenTensor:
        """See `TensorOutput.write`."""
        target = self._targets[pair.name]
        columns = StoredMatrix.view_shape(pair.finetuned)[1]
        sink = FileSink(self._writers[target.file], target, columns, self._stopped)
        done, parts = repairer.repair(pair, sink)
        return WrittenTensor(done, parts, target.dtype, target.file, sink.xxh3())

    def finish(
        self, records: Sequence[TensorRecord], finetuned: InputRecord, workers: Workers
    ) -> tuple[tuple[TensorRecord, ...], list[FileRecord]]:
        """See `FolderOutput.finish`. A shard whose tensors were all copied has the known hash of its original."""
        changed = {record.file for record in records if record.outcome in {"filtered", "reverted"}}
        known = {file.name: file for file in finetuned.files}

        def hash_one(shard: ShardLayout) -> FileRecord:
            copied = shard.file not in changed and self._is_as_in_finetuned(shard)
            return known[shard.file] if copied else hash_file(self._work.staged / shard.file, shard.file)

        return tuple(records), workers.map(hash_one, self._plan.layout.shards)

    def close(self) -> None:
        """Close every shard."""
        self._open_files.close()

    def _is_as_in_finetuned(self, shard: ShardLayout) -> bool:
        """Whether a shard has the header of FINETUNED's own file, and none of its tensors is computed while it is read."""
        finetuned = self._plan.finetuned
        if any(finetuned.is_computed(finetuned.tensors[tensor.name]) for tensor in shard.tensors):
            return False
        original = finetuned.headers.get(shard.file)
        return original is not None and original.text == shard.header


class FileSink:
    """Writes one tensor to its place in a file, and hashes what it writes; an implementation of `Sink`.

    Args:
        writer: of the file.
        tensor: in it.
        columns: of the tensor as it is read.
        stopped: an event that tells the writers to end early.
    """

    def __init__(self, writer: ShardWriter, tensor: StoredTensor, columns: int, stopped: threading.Event) -> None:
        self.dtype = NUMPY_DTYPES[tensor.dtype]
        self._writer, self._tensor, self._stopped = writer, tensor, stopped
        self._columns = columns
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
        """See `Sink.write_columns`. Each row takes one short write."""
        if self._stopped.is_set():
            raise CancelledError
        self._in_order = False
        for number, part in enumerate(values, row):
            self._writer.write(self._tensor, (number * self._columns + start) * self.dtype.itemsize, bytes_of(part))

    def xxh3(self) -> str:
        """The XXH3-128 hash of the tensor's bytes. They are read back if they were not written in order."""
        return self._hash.hexdigest() if self._in_order else tensor_hash(self._writer.read(self._tensor))
