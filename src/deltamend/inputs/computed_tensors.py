"""Tensors whose values are copied from others as they are read; each is a `ComputedTensor`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, StoredTensor


@dataclass(frozen=True, eq=False)
class EntrySpan:
    """Consecutive entries of a tensor of `checkpoint`, from entry `first` on: all of it under another name, or a part."""

    checkpoint: Checkpoint
    tensor: StoredTensor
    first: int = 0

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        out[:] = self.checkpoint.values(self.tensor, self.first + start, self.first + stop)

    def squared_errors(self, start: int, stop: int) -> Array:
        """See `Checkpoint.squared_errors`; zeros where the tensor is not quantised."""
        return _errors(self.checkpoint, self.tensor, self.first + start, self.first + stop)


@dataclass(frozen=True, eq=False)
class Concatenated:
    """Several tensors one after another, as one tensor."""

    checkpoint: Checkpoint
    parts: tuple[StoredTensor, ...]

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        position = 0
        for part in self.parts:
            first, last = max(start, position), min(stop, position + part.elements)
            if first < last:
                out[first - start : last - start] = self.checkpoint.values(part, first - position, last - position)
            position += part.elements

    def squared_errors(self, start: int, stop: int) -> Array:
        """See `Checkpoint.squared_errors`; zeros where a part is not quantised."""
        found, position = [], 0
        for part in self.parts:
            first, last = max(start, position), min(stop, position + part.elements)
            if first < last:
                found.append(_errors(self.checkpoint, part, first - position, last - position))
            position += part.elements
        return np.concatenate(found)


def _errors(checkpoint: Checkpoint, tensor: StoredTensor, start: int, stop: int) -> Array:
    found = checkpoint.squared_errors(tensor, start, stop)
    return np.zeros(stop - start, np.float32) if found is None else found
