"""Tensors that lie in parts in the files of a training run, as one tensor; and the checkpoint that they make up."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, ComputedTensor, StoredTensor
from deltamend.checkpoint.dtypes import NUMPY_DTYPES, itemsize
from deltamend.checkpoint.file_names import CONFIG_FILE
from deltamend.checkpoint.json_file import read_json
from deltamend.checkpoint.safetensors_header import Header, HeaderEntry
from deltamend.checkpoint.torch_archive import ArchivedTensor
from deltamend.errors import CheckpointError


class Span(NamedTuple):
    """Consecutive entries of a stored part, from entry `first` on."""

    part: StoredTensor
    first: int
    length: int


class Box(NamedTuple):
    """A stored part that is a block of a tensor: where in it the block begins, and its sizes."""

    part: StoredTensor
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Spans:
    """A tensor whose entries lie in spans, one after another; a `ComputedTensor`."""

    checkpoint: Checkpoint
    spans: tuple[Span, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint, spans: Sequence[Span]) -> Spans:
        """The tensor of these spans."""
        return cls(checkpoint, tuple(spans), (0, *accumulate(span.length for span in spans)))

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        number, done = bisect_right(self.starts, start) - 1, start
        while done < stop:
            span = self.spans[number]
            end = min(stop, self.starts[number] + span.length)
            first = span.first + done - self.starts[number]
            if done < end:
                out[done - start : end - start] = self.checkpoint.values(span.part, first, first + end - done)
            done, number = end, number + 1


@dataclass(frozen=True, eq=False)
class Boxes:
    """A tensor that is cut into blocks in any of its dimensions; a `ComputedTensor`."""

    checkpoint: Checkpoint
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`: whole rows of the first dimension are put together, and cut to what was asked for."""
        row = math.prod(self.shape[1:])
        first, last = start // row, -(-stop // row)
        rows = np.zeros((last - first, *self.shape[1:]), out.dtype)
        for box in self.boxes:
            top, bottom = max(first, box.offsets[0]), min(last, box.offsets[0] + box.sizes[0])
            if top >= bottom:
                continue
            width = math.prod(box.sizes[1:])
            inside = ((top - box.offsets[0]) * width, (bottom - box.offsets[0]) * width)
            values = self.checkpoint.values(box.part, *inside).reshape(bottom - top, *box.sizes[1:])
            across = zip(box.offsets[1:], box.sizes[1:], strict=True)
            rows[(slice(top - first, bottom - first), *(slice(at, at + size) for at, size in across))] = values
        out[:] = rows.reshape(-1)[start - first * row : stop - first * row]


@dataclass(frozen=True)
class Parts:
    """The parts that a run stored: for each file, relative to the folder, its tensors by a name of their own."""

    by_file: Mapping[str, Mapping[str, ArchivedTensor]]


def folder_of_config(weights: Path) -> Path:
    """The folder of the config that belongs to a folder of weights: itself, or the one above.

    Raises:
        CheckpointError: neither has one.
    """
    for folder in (weights, weights.parent):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise CheckpointError(
        f"{weights}: a training run wrote its weights here without {CONFIG_FILE}, and {weights.parent} has none either; copy "
        f"{CONFIG_FILE} and the tokenizer of the model that was trained into {weights}"
    )


def checkpoint_of_parts(home: Path, parts: Parts) -> Checkpoint:
    """Open the files of a training run; the tensors that it shows are the parts, by their own names.

    Args:
        home: the folder of the config; files are named relative to it.
        parts: what lies in them.

    Raises:
        CheckpointError: a part has a dtype that cannot be read, or its entries do not lie row by row.
    """
    headers = {}
    for file, tensors in parts.by_file.items():
        for name, tensor in tensors.items():
            if tensor.dtype not in NUMPY_DTYPES or not tensor.contiguous:
                what = f"dtype {tensor.dtype}" if tensor.contiguous else "entries that are not stored row by row"
                raise CheckpointError(f"{home / file}: tensor {name!r} has {what}, which deltamend cannot read")
        entries = [
            HeaderEntry(name, found.dtype, found.shape, found.start, found.stop) for name, found in tensors.items()
        ]
        headers[file] = Header(tuple(sorted(entries, key=lambda entry: (entry.start, entry.name))), {}, b"")
    checkpoint = Checkpoint(home, read_json(home / CONFIG_FILE), headers, has_index=False)
    checkpoint.assembled = True
    return checkpoint


def show_assembled(
    checkpoint: Checkpoint,
    tensors: Mapping[str, tuple[tuple[int, ...], ComputedTensor | StoredTensor, StoredTensor]],
    note: str,
) -> None:
    """Show whole tensors in the place of parts.

    Args:
        checkpoint: of `checkpoint_of_parts`.
        tensors: by name, the shape; the source, or the part that holds all of it; and a part, for file and dtype.
        note: how it is read.
    """
    shown: dict[str, StoredTensor] = {}
    computed: dict[StoredTensor, ComputedTensor] = {}
    for name, (shape, source, part) in tensors.items():
        if isinstance(source, StoredTensor):
            shown[name] = replace(source, name=name, shape=shape)
            continue
        size = math.prod(shape) * itemsize(part.dtype)
        shown[name] = StoredTensor(name, part.dtype, shape, part.file, part.start, part.start + size)
        computed[shown[name]] = source
    checkpoint.present(shown, computed, [note])
