"""Write a repair as a PEFT LoRA adapter to BASE."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import closing

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.dtypes import itemsize
from deltamend.checkpoint.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from deltamend.checkpoint.hashing import hash_file
from deltamend.checkpoint.layout import ShardLayout
from deltamend.checkpoint.manifest import AdapterRecord, FileRecord, InputRecord, MatrixRepair, TensorRecord
from deltamend.checkpoint.publishing import WorkFolder
from deltamend.checkpoint.safetensors_header import encode_header
from deltamend.checkpoint.shard_writer import ShardWriter
from deltamend.errors import UsageError
from deltamend.inputs.pairing import TensorPair
from deltamend.machine.threads import Workers
from deltamend.matrices.buffers import row_chunks, same_bytes
from deltamend.matrices.update_walk import MatrixItem
from deltamend.repairing.adapter_layout import AdapterPlan, Placed, arrange, encode_config, refusal_of_outside
from deltamend.repairing.adapter_parts import AdapterParts, PartSink
from deltamend.repairing.merge import refuse_damaged
from deltamend.repairing.one_matrix import repair_matrix
from deltamend.repairing.outputs import WrittenTensor
from deltamend.repairing.plan import RepairPlan
from deltamend.repairing.tensor_repairer import TensorRepairer


class AdapterOutput:
    """Writes the adapter's part of each tensor into the work folder, and joins the parts at the end.

    An implementation of `FolderOutput`.

    Args:
        plan: the plan of the repair.
        adapter: the plan of the adapter, which says where each tensor goes.
        work: the work folder.
        stopped: an event that tells the writers to end early.
    """

    def __init__(self, plan: RepairPlan, adapter: AdapterPlan, work: WorkFolder, stopped: threading.Event) -> None:
        self._adapter, self._work, self._stopped = adapter, work, stopped
        order = [tensor.name for shard in plan.layout.shards for tensor in shard.tensors]
        self._parts = AdapterParts(adapter, work.parts, order, plan.options.dtype_name, stopped)

    def is_intact(self, pair: TensorPair, record: TensorRecord) -> bool:  # noqa: ARG002 - the record says enough
        """See `FolderOutput.is_intact`."""
        return self._parts.is_finished(record)

    def write(self, pair: TensorPair, repairer: TensorRepairer) -> WrittenTensor:
        """See `TensorOutput.write`."""
        with closing(self._parts.sink(pair)) as sink:
            done = _repair_into(sink, pair, repairer, self._adapter)
            stored, xxh3 = sink.finish()
        return WrittenTensor(done, (), sink.dtype_name, ADAPTER_FILE, xxh3, stored)

    def finish(
        self,
        records: Sequence[TensorRecord],
        finetuned: InputRecord,  # noqa: ARG002 - nothing of an adapter is copied
        workers: Workers,  # noqa: ARG002 - it is one file
    ) -> tuple[tuple[TensorRecord, ...], list[FileRecord]]:
        """Join the parts in the adapter's file, and write its config; see `FolderOutput.finish`.

        Raises:
            OutputError: the disk is full, or a parameter changed that belongs to no module that peft can save.
        """
        chosen, config = arrange(records, self._adapter)
        self._assemble([(part, record.name) for record in records for part in chosen[record.name]])
        self._work.write_file(ADAPTER_CONFIG_FILE, encode_config(config))
        named = tuple(
            record.model_copy(update={"adapter": tuple(map(_adapter_record, chosen[record.name]))})
            for record in records
        )
        return named, [hash_file(self._work.staged / ADAPTER_FILE, ADAPTER_FILE)]

    def close(self) -> None:
        """Do nothing, because no file stays open between two tensors."""

    def _assemble(self, placed: list[tuple[Placed, str]]) -> None:
        """Write the adapter's file.

        Args:
            placed: the tensors of the adapter, each with the name of the model's tensor whose part holds it.
        """
        # The widest dtypes come first, so that each tensor begins at a multiple of its item size, as readers need.
        placed.sort(key=lambda item: -itemsize(item[0].dtype))
        described = [(part.key, part.dtype, part.shape) for part, _ in placed]
        header, offsets = encode_header(described, {"format": "pt"})
        tensors = tuple(StoredTensor(key, dtype, shape, ADAPTER_FILE, *offsets[key]) for key, dtype, shape in described)
        size = tensors[-1].stop if tensors else len(header)
        layout = ShardLayout(ADAPTER_FILE, header, tensors, size)
        with closing(ShardWriter(self._work.staged, layout)) as writer:
            for tensor, (part, name) in zip(tensors, placed, strict=True):
                position = 0
                for piece in self._parts.pieces(name, part.start, tensor.nbytes):
                    if self._stopped.is_set():
                        raise CancelledError
                    writer.write(tensor, position, memoryview(piece))
                    position += len(piece)


def _adapter_record(part: Placed) -> AdapterRecord:
    return AdapterRecord(key=part.key, shape=part.shape, dtype=part.dtype, xxh3=part.xxh3)


def _repair_into(sink: PartSink, pair: TensorPair, repairer: TensorRepairer, plan: AdapterPlan) -> MatrixRepair:
    """Repair one tensor, and write what the adapter needs of it; it needs nothing of a matrix that equals BASE's."""
    reader = repairer.reader
    if pair.action == "filter":
        item = MatrixItem(pair)
        factors = sink if pair.is_matrix else None
        return repair_matrix(*reader.sides(item), repairer.job(item), sink, reader.buffers(), factor_sink=factors)
    equal = _is_equal(pair, repairer)
    if pair.name in plan.outside and not equal:
        raise UsageError(refusal_of_outside(pair.name))
    if not (pair.is_matrix and equal):  # a vector is small, and its module may have to be saved whole, with the vector
        repairer.repair(pair, sink)
    return MatrixRepair(outcome="zero" if equal else "kept", reason="base and fine-tuned are equal" if equal else "")


def _is_equal(pair: TensorPair, repairer: TensorRepairer) -> bool:
    """Whether both sides of a tensor hold the same bytes."""
    if pair.base is None or pair.base.dtype != pair.finetuned.dtype:
        return False
    base, finetuned = repairer.reader.sides(MatrixItem(pair))
    equal = all(same_bytes(base.rows(*span), finetuned.rows(*span)) for span in row_chunks(base.shape))
    if equal:
        refuse_damaged((base, finetuned), pair.name)
    return equal
