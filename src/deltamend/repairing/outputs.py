"""What a repair can be written to: a checkpoint, an adapter, or tensors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from deltamend.checkpoint.manifest import AdapterRecord, FileRecord, InputRecord, MatrixRepair, PartRecord, TensorRecord
from deltamend.inputs.pairing import TensorPair
from deltamend.machine.threads import Workers
from deltamend.repairing.tensors import TensorRepairer


@dataclass(frozen=True)
class WrittenTensor:
    """What became of one tensor.

    Attributes:
        done: what was done to it over all.
        parts: what was done to each of its parts, where it has several.
        file: the file it is in; "" in memory.
        dtype: the safetensors name of the dtype it is stored in.
        xxh3: XXH3-128 of its bytes; "" in memory.
        adapter: what an adapter holds of it; None elsewhere.
    """

    done: MatrixRepair
    parts: tuple[PartRecord, ...]
    dtype: str
    file: str = ""
    xxh3: str = ""
    adapter: tuple[AdapterRecord, ...] | None = None


class TensorOutput(Protocol):
    """Takes the repaired tensors, in any order and from any thread."""

    def write(self, pair: TensorPair, repairer: TensorRepairer) -> WrittenTensor:
        """Have one tensor repaired, and store it."""


class FolderOutput(TensorOutput, Protocol):
    """An output that is made in the work folder, where an interrupted run can be taken up again."""

    def is_intact(self, pair: TensorPair, record: TensorRecord) -> bool:
        """Whether what an earlier run recorded of a tensor is there and undamaged."""

    def finish(
        self, records: Sequence[TensorRecord], finetuned: InputRecord, workers: Workers
    ) -> tuple[tuple[TensorRecord, ...], list[FileRecord]]:
        """Complete the weight files, once every tensor is written.

        Args:
            records: of all tensors, in the order of the output's files.
            finetuned: the hashes of FINETUNED's files.
            workers: to share the work.

        Returns:
            The records as they go into the manifest, and the weight files with their hashes.
        """

    def close(self) -> None:
        """Close every file."""
