"""What every quantised format has in common: one weight, stored as codes and scales, that is shown as a matrix of fp32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, QuantisedTensor, StoredTensor
from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.errors import CheckpointError

_ROWS_AT_ONCE = 1 << 20
"""About how many entries are dequantised at a time."""


@dataclass(frozen=True)
class PackedWeight:
    """One weight of a quantised checkpoint.

    Attributes:
        name: the name of the weight, as the unquantised model has it.
        shape: its shape, likewise.
        place: the stored tensor in whose place it is shown.
        packing: the format of its values, a key of `ROUNDING_FLOORS`.
        values: the source of its values.
        parts: the names of all stored tensors that it is made of.
    """

    name: str
    shape: tuple[int, ...]
    place: StoredTensor
    packing: str
    values: QuantisedTensor
    parts: frozenset[str]


class MatrixRows(Protocol):
    """A quantised matrix that is dequantised a few whole rows at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the dequantised matrix."""

    def rows(self, first: int, last: int) -> Array:
        """Rows first:last, fp32, shape (last − first, columns)."""

    def squared_error_rows(self, first: int, last: int) -> Array:
        """The expected squared rounding error of each entry of these rows, fp32, same shape."""


@dataclass(frozen=True, eq=False)
class ByRows:
    """The entries of a matrix that is dequantised by rows; an implementation of `QuantisedTensor`."""

    matrix: MatrixRows

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        self._gather(start, stop, out, errors=False)

    def squared_errors(self, start: int, stop: int) -> Array:
        """See `Checkpoint.squared_errors`."""
        out = np.empty(stop - start, np.float32)
        self._gather(start, stop, out, errors=True)
        return out

    def _gather(self, start: int, stop: int, out: Array, *, errors: bool) -> None:
        columns = self.matrix.shape[1]
        step = max(1, _ROWS_AT_ONCE // columns)
        for first in range(start // columns, -(-stop // columns), step):
            last = min(first + step, -(-stop // columns))
            rows = self.matrix.squared_error_rows(first, last) if errors else self.matrix.rows(first, last)
            values = rows.reshape(-1)
            begin, end = max(start, first * columns), min(stop, last * columns)
            out[begin - start : end - start] = values[begin - first * columns : end - first * columns]


def whole(checkpoint: Checkpoint, tensor: StoredTensor) -> Array:
    """All values of a stored tensor, in its shape."""
    return checkpoint.values(tensor, 0, tensor.elements).reshape(tensor.shape)


def float_values(checkpoint: Checkpoint, tensor: StoredTensor, start: int, stop: int) -> Array:
    """Entries [start, stop) of a stored tensor of scales, as fp32."""
    return checkpoint.values(tensor, start, stop).astype(np.float32)


def fault(checkpoint: Checkpoint, tensor: StoredTensor, what: str) -> CheckpointError:
    """The error that says what is wrong with a stored tensor of a quantised weight."""
    return CheckpointError(
        f"{checkpoint.folder / tensor.file}: tensor {tensor.name!r} {what}; download it again, or give the unquantised checkpoint"
    )


def part(
    checkpoint: Checkpoint,
    held: Mapping[str, StoredTensor],
    of: StoredTensor,
    name: str,
    dtypes: Collection[str],
    shape: tuple[int, ...] | None = None,
) -> StoredTensor:
    """A tensor that belongs to a quantised weight, such as its scales.

    Args:
        checkpoint: the checkpoint.
        held: its stored tensors.
        of: the stored codes of the weight, which the error names if the tensor is missing.
        name: the name of the tensor.
        dtypes: the dtypes it may have.
        shape: the shape it must have; None for any.

    Raises:
        CheckpointError: it is missing, or its dtype or shape is another.
    """
    found = held.get(name)
    if found is None:
        raise fault(checkpoint, of, f"has no {name.rpartition('.')[2]!r} beside it ({name!r} is missing)")
    if found.dtype not in dtypes:
        raise fault(checkpoint, found, f"has dtype {found.dtype}, where {' or '.join(sorted(dtypes))} is expected")
    if shape is not None and found.shape != shape:
        raise fault(checkpoint, found, f"has shape {list(found.shape)}, where {list(shape)} is expected")
    return found


SCALE_DTYPES = FLOAT_NAMES - {"F64"}

CONFIG_FIELDS = ("quantization_config", "compression_config")
"""Under which names a config says how the weights are quantised."""


def quantisation_config(config: Mapping[str, Any]) -> Any:
    """What a config, or its text part, says of quantisation; None where it says nothing."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        for field in CONFIG_FIELDS:
            if place.get(field) is not None:
                return place[field]
    return None


def weight_schemes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How compressed-tensors says the weights of each group of modules are quantised."""
    said = quantisation_config(config)
    groups = said.get("config_groups") if isinstance(said, Mapping) else None
    return _tables([group.get("weights") for group in _tables(groups)])


def _tables(values: object) -> list[Mapping[str, Any]]:
    """The JSON objects among the values of an object or list."""
    found = list(values.values()) if isinstance(values, dict) else values
    return [value for value in found if isinstance(value, dict)] if isinstance(found, list) else []
