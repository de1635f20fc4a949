"""The protocol of outputs. A repair is written to a checkpoint, to an adapter, or to tensors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from deltamend.checkpoint.manifest import AdapterRecord, FileRecord, InputRecord, MatrixRepair, PartRecord, TensorRecord
from deltamend.inputs.pairing import TensorPair
from deltamend.machine.threads import Workers
from deltamend.repairing.tensor_repairer import TensorRepairer


@dataclass(frozen=True)
class WrittenTensor:
    """The record of one tensor that an output has stored.

    Attributes:
        done: what was done to the whole tensor.
        parts: what was done to each of its parts, if it has several.
        dtype: the dtype that it is stored in, by its name in safetensors files.
        file: the file that holds it; "" in memory.
        xxh3: the XXH3-128 hash of its bytes; "" in memory.
        adapter: the tensors of an adapter that hold its update; None for other outputs.
    """

    done: MatrixRepair
    parts: tuple[PartRecord, ...]
    dtype: str
    file: str = ""
    xxh3: str = ""
    adapter: tuple[AdapterRecord, ...] | None = None


class TensorOutput(Protocol):
    """Stores repaired tensors. They may come in any order and from any thread."""

    def write(self, pair: TensorPair, repairer: TensorRepairer) -> WrittenTensor:
        """Let the repairer repair one tensor, and store the result."""


class FolderOutput(TensorOutput, Protocol):
    """An output that is built in the work folder, so that an interrupted run can be continued."""

    def is_intact(self, pair: TensorPair, record: TensorRecord) -> bool:
        """Whether the tensor that an earlier run recorded is still in the work folder, undamaged."""

    def finish(
        self, records: Sequence[TensorRecord], finetuned: InputRecord, workers: Workers
    ) -> tuple[tuple[TensorRecord, ...], list[FileRecord]]:
        """Complete the weight files after every tensor has been written.

        Args:
            records: the records of all tensors, in the order in which the output's files hold them.
            finetuned: the hashes of FINETUNED's files.
            workers: threads to share the work.

        Returns:
            The records for the manifest, and the weight files with their hashes.
        """

    def close(self) -> None:
        """Close every file."""
