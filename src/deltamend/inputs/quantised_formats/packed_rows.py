"""Integers of compressed-tensors (`pack-quantized`), packed along the rows of a weight.

The format (compressed-tensors, `compressors.pack_quantized`): for a weight W of shape (rows, columns), `weight_packed` holds
unsigned codes along each row in 32-bit words; `weight_shape` the shape; `weight_scale` one scale for the tensor, for each row,
or for each group of columns in a row; `weight_zero_point`, if there is one, the zero points, packed along the rows; and
`weight_g_idx`, if there is one, the group of each column. An entry is (code − zero point)·scale; without zero points they are
in the middle, at 2^(bits−1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, StoredTensor
from deltamend.inputs.quantised_formats.bit_fields import unpacked_integers
from deltamend.inputs.quantised_formats.packed_weight import (
    SCALE_DTYPES,
    ByRows,
    PackedWeight,
    fault,
    float_values,
    part,
    weight_schemes,
    whole,
)

_SUFFIX = ".weight_packed"
_BITS = (2, 4, 8)


def packed_row_weights(checkpoint: Checkpoint) -> Iterator[PackedWeight]:
    """Find the weights of `pack-quantized`, of 2, 4 or 8 bits.

    Raises:
        CheckpointError: a part of a weight is missing, damaged, or does not fit the others.
    """
    for name, codes in list(checkpoint.tensors.items()):
        if name.endswith(_SUFFIX) and codes.dtype == "I32":
            yield _weight(checkpoint, name.removesuffix(_SUFFIX), codes)


def _weight(checkpoint: Checkpoint, module: str, codes: StoredTensor) -> PackedWeight:
    held = checkpoint.tensors
    stated = part(checkpoint, held, codes, f"{module}.weight_shape", {"I64", "I32"}, (2,))
    rows, columns = (int(size) for size in whole(checkpoint, stated))
    if not (0 < rows < 2**40 and 0 < columns < 2**40):
        raise fault(checkpoint, stated, f"says the shape is {[rows, columns]}")
    bits = _bits(checkpoint, codes, rows, columns)
    scale = part(checkpoint, held, codes, f"{module}.weight_scale", SCALE_DTYPES)
    groups = _groups(checkpoint, scale, rows, columns)
    zero = held.get(f"{module}.weight_zero_point")
    if zero is not None:
        words = -(-rows * bits // 32)
        part(checkpoint, held, codes, zero.name, {"I32"}, (words, groups))
    order = held.get(f"{module}.weight_g_idx")
    if order is not None:
        part(checkpoint, held, codes, order.name, {"I32", "I64"}, (columns,))
        group_of = whole(checkpoint, order)
        if int(group_of.min()) < 0:  # compressed-tensors fills it with −1 where it is not used
            order = None
        elif int(group_of.max()) >= groups:
            raise fault(checkpoint, order, f"names group {group_of.max()}, and there are {groups}")
    if order is None and columns % groups:
        raise fault(checkpoint, scale, f"has {groups} groups, which do not divide {columns} columns")
    values = PackedRows(checkpoint, codes, scale, zero, order, (rows, columns), bits, groups)
    leaves = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx")
    names = frozenset(f"{module}.{leaf}" for leaf in leaves)
    return PackedWeight(f"{module}.weight", (rows, columns), codes, f"int{bits}", ByRows(values), names)


def _bits(checkpoint: Checkpoint, codes: StoredTensor, rows: int, columns: int) -> int:
    """Bits of a code: those with which a row fills its words, and of several such those that the config names."""
    fitting = [bits for bits in _BITS if codes.shape == (rows, -(-columns * bits // 32))]
    said = {scheme.get("num_bits") for scheme in weight_schemes(checkpoint.config)}
    chosen = [bits for bits in fitting if bits in said] or fitting
    if not chosen:
        raise fault(
            checkpoint,
            codes,
            f"has shape {list(codes.shape)}, which holds no [{rows}, {columns}] integers of 2, 4 or 8 bits",
        )
    return chosen[0]


def _groups(checkpoint: Checkpoint, scale: StoredTensor, rows: int, columns: int) -> int:
    """Groups of columns in a row."""
    if scale.elements == 1:
        return 1
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    if scale.shape[0] != rows or not 0 < groups <= columns or scale.elements != rows * groups:
        raise fault(
            checkpoint, scale, f"has shape {list(scale.shape)}, which does not fit a weight of {[rows, columns]}"
        )
    return groups


@dataclass(frozen=True, eq=False)
class PackedRows:
    """(Code − zero point) · scale, by rows; an implementation of `MatrixRows`. The module says what the parts are."""

    checkpoint: Checkpoint
    codes: StoredTensor
    scale: StoredTensor
    zero: StoredTensor | None
    order: StoredTensor | None
    shape: tuple[int, int]
    bits: int
    groups: int

    def rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.rows`."""
        words = self.codes.shape[1]
        packed = self.checkpoint.values(self.codes, first * words, last * words).reshape(-1, words)
        codes = unpacked_integers(packed, self.bits, self.shape[1])
        values = np.ascontiguousarray(codes).astype(np.float32)
        if self.zero is None:
            values -= np.float32(2 ** (self.bits - 1))
        else:
            values = self._with(np.subtract, values, self._zeros(self.zero, first, last))
        return self._with(np.multiply, values, self._scales(first, last))

    def squared_error_rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.squared_error_rows`: a twelfth of the squared scale, as the codes are evenly spaced."""
        ones = np.full((last - first, self.shape[1]), np.float32(1 / 12))
        return self._with(np.multiply, ones, np.square(self._scales(first, last)))

    def _with(self, operation: np.ufunc, values: Array, by_group: Array) -> Array:
        """The values (rows, columns) with those of their groups, (rows, groups)."""
        if self.order is not None:
            operation(values, by_group[:, whole(self.checkpoint, self.order)], out=values)
            return values
        grouped = values.reshape(values.shape[0], self.groups, -1)
        operation(grouped, by_group[:, :, None], out=grouped)
        return values

    def _scales(self, first: int, last: int) -> Array:
        if self.scale.elements == 1:
            return np.repeat(float_values(self.checkpoint, self.scale, 0, 1)[None], last - first, axis=0)
        return float_values(self.checkpoint, self.scale, first * self.groups, last * self.groups).reshape(
            -1, self.groups
        )

    def _zeros(self, zero: StoredTensor, first: int, last: int) -> Array:
        """Zero points of rows first:last, from the words that hold them."""
        top, bottom = first * self.bits // 32, -(-last * self.bits // 32)
        words = self.checkpoint.values(zero, top * self.groups, bottom * self.groups).reshape(-1, self.groups)
        start = top * 32 // self.bits
        found = unpacked_integers(np.ascontiguousarray(words.T), self.bits, last - start)
        return found[:, first - start :].T.astype(np.float32)
