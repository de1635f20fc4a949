"""The parts of an adapter: for each tensor of the model, a file in the work folder with what the adapter holds of it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.dtypes import FLOAT_NAMES, NUMPY_DTYPES, itemsize
from deltamend.checkpoint.hashing import tensor_hash
from deltamend.checkpoint.layout import ShardLayout
from deltamend.checkpoint.manifest import AdapterRecord, TensorRecord
from deltamend.checkpoint.shard_writer import ShardWriter
from deltamend.errors import OutputError, option
from deltamend.inputs.pairing import TensorPair
from deltamend.matrices.buffers import Array, bytes_of, norm_squared, row_chunks
from deltamend.matrices.delta import DeltaBlocks
from deltamend.matrices.views import StoredMatrix
from deltamend.methods.method import KeptDelta
from deltamend.repairing.adapter_layout import AdapterPlan
from deltamend.repairing.low_rank_update import UpdateFactors, update_factors
from deltamend.repairing.rounded_factors import RoundedProduct, slices_of_block
from deltamend.repairing.sinks import Norms
from deltamend.repairing.to_checkpoint import FileSink
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.kept_subspace import SpectralFilter


class AdapterParts:
    """The parts of an adapter. Each is a file of its own, because its size is known only after the tensor is repaired.

    Args:
        plan: the plan of the adapter, which says where each tensor goes.
        folder: the folder of the parts; it is deleted together with the work folder.
        order: the names of all tensors, in the order in which the adapter will hold them.
        dtype: the dtype of all stored values, by its name in safetensors files. None stores factors in fp32, or in fp64 if
            FINETUNED is in fp64, and stores tensors that are not repaired in the dtype of FINETUNED.
        stopped: an event that tells the writers to end early.
    """

    def __init__(
        self, plan: AdapterPlan, folder: Path, order: Iterable[str], dtype: str | None, stopped: threading.Event
    ) -> None:
        self.plan = plan
        self.dtype = dtype
        self.stopped = stopped
        self._order = {name: index for index, name in enumerate(order)}
        self._folder = folder

    def path(self, name: str) -> Path:
        """The file of the part of one tensor."""
        return self._folder / f"{self._order[name]:06d}"

    def is_finished(self, record: TensorRecord) -> bool:
        """Whether the part that an earlier run recorded is there, undamaged."""
        return record.adapter is not None and tensor_hash(_pieces(self.path(record.name))) == record.xxh3

    def sink(self, pair: TensorPair) -> PartSink:
        """Make the sink of one tensor. Close it after use."""
        return PartSink(self, pair)

    def pieces(self, name: str, start: int, count: int) -> Iterator[bytes]:
        """Read `count` bytes of the part of one tensor, beginning at byte `start`."""
        return _pieces(self.path(name), start, count)


class PartSink:
    """Writes the part of one tensor: its factors if Δ* is low-rank, nothing if Δ* = 0, else the whole tensor.

    It is an implementation of `FactorSink`. The dtype of a tensor that is written whole depends on the outcome of the repair.
    """

    def __init__(self, parts: AdapterParts, pair: TensorPair) -> None:
        self._parts, self._pair = parts, pair
        self._places = parts.plan.factor_places(pair.name)
        own = pair.finetuned.output_dtype
        self._wide = "F64" if own == "F64" else "F32"
        self._whole_dtype = self._wide if pair.action == "filter" and not self._places else own
        if parts.dtype is not None and own in FLOAT_NAMES:
            self._wide = self._whole_dtype = parts.dtype
        self._writer: ShardWriter | None = None
        self._whole: FileSink | None = None
        self._records: tuple[AdapterRecord, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Sink.dtype`."""
        return NUMPY_DTYPES[self._whole_dtype]

    @property
    def dtype_name(self) -> str:
        """The dtype of what is stored, by its name in safetensors files."""
        return self._records[0].dtype if self._records else self._whole_dtype

    def write_rows(self, start: int, values: Array) -> None:
        """See `Sink.write_rows`."""
        self._open_whole().write_rows(start, values)

    def write_columns(self, start: int, values: Array, row: int = 0) -> None:
        """See `Sink.write_columns`."""
        self._open_whole().write_columns(start, values, row)

    def take_factors(self, delta: DeltaBlocks, kept: KeptDelta, update_rank: int | None = None) -> Norms | None:
        """See `FactorSink.take_factors`."""
        if kept.outcome == "reverted":
            return Norms(delta=sum(_energy(block.values) for block in delta), unmoved=None)
        if update_rank is not None and kept.spectrum is None and self._has_room(update_rank, delta.shape):
            return self._write_update(update_factors(delta, kept, update_rank, self._pair.name))
        if kept.outcome != "filtered":
            return None
        found = kept.spectrum
        if found is None or found.basis is None:
            raise OutputError(
                f"tensor {self._pair.name!r}: the method did not return factors; use {option('output', 'checkpoint')}"
            )
        if not self._has_room(found.rank, found.shape):
            self._whole_dtype = self._wide
            return None
        return self._write_factors(delta, found)

    def finish(self) -> tuple[tuple[AdapterRecord, ...], str]:
        """The records of what was written, and the hash of the part. Call it after everything has been written."""
        if self._whole is not None:
            xxh3 = self._whole.xxh3()
            key = self._parts.plan.key(self._pair.name)
            shape = self._pair.finetuned.shape
            return (AdapterRecord(key=key, shape=shape, dtype=self._whole_dtype, xxh3=xxh3),), xxh3
        return self._records, tensor_hash(_pieces(self._parts.path(self._pair.name)))

    def close(self) -> None:
        """Close the part's file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[StoredTensor, ...]:
        """Create the part's file with room for some tensors (name, dtype, shape), one after another."""
        path = self._parts.path(self._pair.name)
        stored, position = [], 0
        for name, dtype, shape in tensors:
            nbytes = math.prod(shape) * itemsize(dtype)
            stored.append(StoredTensor(name, dtype, shape, path.name, position, position + nbytes))
            position += nbytes
        path.unlink(missing_ok=True)
        self._writer = ShardWriter(path.parent, ShardLayout(path.name, b"", tuple(stored), position))
        return tuple(stored)

    def _open_whole(self) -> FileSink:
        if self._whole is None:
            (tensor,) = self._open([(self._pair.name, self._whole_dtype, self._pair.finetuned.shape)])
            if self._writer is None:
                raise AssertionError("the part's file was just opened")
            columns = StoredMatrix.view_shape(self._pair.finetuned)[1]
            self._whole = FileSink(self._writer, tensor, columns, self._parts.stopped)
        return self._whole

    def _has_room(self, rank: int, shape: tuple[int, int]) -> bool:
        """Whether there is a place for factors, and they are smaller than the matrix itself."""
        return bool(self._places) and rank * sum(shape) <= math.prod(shape)

    def _open_factors(self, rank: int, shape: tuple[int, int]) -> tuple[StoredTensor, ...]:
        """Create the part's file with room for the factors of a matrix, at every place where one is stored."""
        lengths = {"left": shape[0], "right": shape[1]}
        shapes = [
            (rank, lengths[place.side]) if place.by_rank else (lengths[place.side], rank) for place in self._places
        ]
        return self._open([(place.key, self._wide, size) for place, size in zip(self._places, shapes, strict=True)])

    def _write_update(self, found: UpdateFactors) -> Norms:
        """Write the factors of an update whose rank is known, and measure their rounding."""
        stored = self._open_factors(len(found.right), (len(found.left), found.right.shape[1]))
        product = RoundedProduct(found.left, NUMPY_DTYPES[self._wide], self._pair.name)
        self._write_side(stored, "left", 0, product.short.T)
        self._write_side(stored, "right", 0, product.add(found.right))
        norms = Norms(unmoved=None, delta=found.delta_energy)
        product.measure(norms)
        self._record_factors(stored)
        return norms

    def _record_factors(self, stored: Sequence[StoredTensor]) -> None:
        if self._writer is None:
            raise AssertionError("the part's file was opened above")
        self._records = tuple(
            AdapterRecord(
                key=tensor.name, shape=tensor.shape, dtype=self._wide, xxh3=tensor_hash(self._writer.read(tensor))
            )
            for tensor in stored
        )

    def _write_factors(self, delta: DeltaBlocks, found: SpectralFilter) -> Norms:
        """Write the factors L and R, each scaled by the square roots of the singular values, and measure their rounding."""
        stored = self._open_factors(found.rank, found.shape)
        short, long = ("left", "right") if found.wide else ("right", "left")
        strengths = np.sqrt(found.singular_values * found.gains)
        basis = np.asarray(found.basis, np.float64)
        product = RoundedProduct(basis * strengths, NUMPY_DTYPES[self._wide], self._pair.name)
        self._write_side(stored, short, 0, product.short.T)
        norms = Norms(unmoved=None)
        for start, _, values in delta:
            norms.delta += _energy(values)
            for first, part in slices_of_block(values, found):
                exact = found.coefficients(part) * (strengths / found.singular_values)[:, None]
                self._write_side(stored, long, start + first, product.add(exact))
        product.measure(norms)
        self._record_factors(stored)
        return norms

    def _write_side(self, stored: Sequence[StoredTensor], side: str, start: int, values: Array) -> None:
        """Write a piece of one factor to every place where that factor is stored.

        Args:
            stored: the tensors of the part.
            side: the factor, "left" or "right".
            start: where the piece begins along the length of the factor.
            values: the piece, shape (rank, length).
        """
        if self._parts.stopped.is_set():
            raise CancelledError
        if self._writer is None:
            raise AssertionError("the part's file is opened first")
        size = values.dtype.itemsize
        for place, tensor in zip(self._places, stored, strict=True):
            if place.side != side:
                continue
            if not place.by_rank:
                self._writer.write(tensor, start * len(values) * size, bytes_of(np.ascontiguousarray(values.T)))
                continue
            for row, part in enumerate(np.ascontiguousarray(values)):
                self._writer.write(tensor, (row * tensor.shape[1] + start) * size, bytes_of(part))


def _energy(values: FloatArray) -> float:
    """‖values‖², added up chunk by chunk."""
    return sum(norm_squared(values[first:last]) for first, last in row_chunks((values.shape[0], values.shape[1])))


def _pieces(path: Path, start: int = 0, count: int | None = None, size: int = 1 << 22) -> Iterator[bytes]:
    """Read the bytes of a part from `start` on, in pieces; nothing if the file does not exist."""
    try:
        opened = path.open("rb")
    except FileNotFoundError:
        return
    with opened:
        opened.seek(start)
        left = path.stat().st_size if count is None else count
        while left and (piece := opened.read(min(size, left))):
            left -= len(piece)
            yield piece
