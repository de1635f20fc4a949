"""Weights in 4-bit floating point with a scale for each block of 16 or 32: MXFP4, and NVFP4.

The formats: two codes a byte, the first in the lower bits, each a value of `E2M1` (OCP Microscaling Formats 1.0). In MXFP4 a
block of 32 has a scale of 8 bits, the power 2^(scale − 127). In NVFP4 a block of 16 has a scale in fp8 (e4m3), divided by one
scale of the whole tensor. compressed-tensors stores both as `weight_packed` and `weight_scale`, and the scale of the tensor as
`weight_global_scale`. gpt-oss stores a stack of experts as `X_blocks`, shape (experts, rows, blocks, 16), and `X_scales`;
transformers shows it transposed, as (experts, columns, rows), and so do we, since that is how it stores the model in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, StoredTensor
from deltamend.inputs.quantised_formats.codebooks import E2M1, cell_variances, pairs_table, powers_of_two, unpacked
from deltamend.inputs.quantised_formats.packed_weight import ByRows, PackedWeight, fault, float_values, part

_PACKED, _BLOCKS, _SCALES = ".weight_packed", "_blocks", "_scales"
_MX_BLOCK, _NV_BLOCK = 32, 16


def fp4_block_weights(checkpoint: Checkpoint) -> Iterator[PackedWeight]:
    """Find the weights in MXFP4 and NVFP4.

    Raises:
        CheckpointError: scales are missing, or do not fit.
    """
    for name, codes in list(checkpoint.tensors.items()):
        if codes.dtype != "U8":
            continue
        if name.endswith(_BLOCKS) and name.removesuffix(_BLOCKS) + _SCALES in checkpoint.tensors:
            yield _experts(checkpoint, name.removesuffix(_BLOCKS), codes)
        elif name.endswith(_PACKED):
            yield _matrix(checkpoint, name.removesuffix(_PACKED), codes)


def _matrix(checkpoint: Checkpoint, module: str, codes: StoredTensor) -> PackedWeight:
    """A weight of compressed-tensors."""
    held = checkpoint.tensors
    if len(codes.shape) != 2:
        raise fault(checkpoint, codes, f"has shape {list(codes.shape)}, where a matrix is expected")
    rows, columns = codes.shape[0], codes.shape[1] * 2
    scale = part(checkpoint, held, codes, f"{module}.weight_scale", {"F8_E4M3", "U8"})
    microscaling = scale.dtype == "U8"
    block = _MX_BLOCK if microscaling else _NV_BLOCK
    part(checkpoint, held, codes, scale.name, {scale.dtype}, (rows, -(-columns // block)))
    divisor = None
    if not microscaling:
        whole_scale = part(checkpoint, held, codes, f"{module}.weight_global_scale", {"F32"})
        divisor = float_values(checkpoint, whole_scale, 0, min(1, whole_scale.elements))
        if whole_scale.elements != 1 or not np.isfinite(divisor[0]) or divisor[0] == 0:
            raise fault(checkpoint, whole_scale, "is no finite scale other than 0")
    if columns % block:
        raise fault(checkpoint, codes, f"has {columns} columns, which are no whole blocks of {block}")
    values = Fp4Rows(checkpoint, codes, scale, (rows, columns), block, None if divisor is None else divisor[0])
    names = frozenset(f"{module}.{leaf}" for leaf in ("weight_packed", "weight_scale", "weight_global_scale"))
    return PackedWeight(
        f"{module}.weight", (rows, columns), codes, "MXFP4" if microscaling else "NVFP4", ByRows(values), names
    )


def _experts(checkpoint: Checkpoint, name: str, codes: StoredTensor) -> PackedWeight:
    """A stack of experts of gpt-oss."""
    if len(codes.shape) != 4 or codes.shape[3] * 2 != _MX_BLOCK or not codes.elements:
        raise fault(checkpoint, codes, f"has shape {list(codes.shape)}, where (experts, rows, blocks, 16) is expected")
    experts, rows, blocks, _ = codes.shape
    scale = part(checkpoint, checkpoint.tensors, codes, name + _SCALES, {"U8"}, codes.shape[:3])
    columns = blocks * _MX_BLOCK
    stored = Fp4Rows(checkpoint, codes, scale, (experts * rows, columns), _MX_BLOCK, None)
    values = ByRows(TransposedExperts(stored, experts))
    return PackedWeight(name, (experts, columns, rows), codes, "MXFP4", values, frozenset({codes.name, scale.name}))


@dataclass(frozen=True, eq=False)
class Fp4Rows:
    """Codes of 4-bit floats times the scales of their blocks, by rows; an implementation of `MatrixRows`.

    Attributes:
        checkpoint: the checkpoint.
        codes: the stored codes, two a byte.
        scale: the stored scales: exponents of two (U8), or fp8.
        shape: (rows, columns) of the weight.
        block: entries of a block.
        divisor: what fp8 scales are divided by; None for exponents.
    """

    checkpoint: Checkpoint
    codes: StoredTensor
    scale: StoredTensor
    shape: tuple[int, int]
    block: int
    divisor: np.float32 | None

    def rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.rows`."""
        return times_scales(self.packed_rows(first, last), E2M1, self.scale_rows(first, last))

    def squared_error_rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.squared_error_rows`."""
        scales = np.square(self.scale_rows(first, last))
        return times_scales(self.packed_rows(first, last), cell_variances(E2M1), scales)

    def packed_rows(self, first: int, last: int) -> Array:
        """The codes of rows first:last, uint8, shape (rows, columns/2)."""
        width = self.shape[1] // 2
        return self.checkpoint.values(self.codes, first * width, last * width).reshape(-1, width)

    def scale_rows(self, first: int, last: int) -> Array:
        """The scales of their blocks, fp32, shape (rows, blocks)."""
        blocks = self.shape[1] // self.block
        stored = self.checkpoint.values(self.scale, first * blocks, last * blocks).reshape(-1, blocks)
        if self.divisor is not None:
            scales: Array = stored.astype(np.float32) / self.divisor
            return scales
        return powers_of_two(stored)


def times_scales(packed: Array, codebook: Array, scales: Array) -> Array:
    """The values of packed codes, times the scale of each block: fp32, shape (rows, columns)."""
    values = unpacked(np.ascontiguousarray(packed), pairs_table(codebook, high_first=False))
    blocks = values.reshape(*scales.shape, -1)
    with np.errstate(invalid="ignore", over="ignore"):
        blocks *= scales[:, :, None]
    return values


@dataclass(frozen=True, eq=False)
class TransposedExperts:
    """A stack of experts, each transposed; an implementation of `MatrixRows` over the rows of all experts.

    Attributes:
        stored: the rows of all experts, as they are stored.
        experts: how many there are.
    """

    stored: Fp4Rows
    experts: int

    @property
    def shape(self) -> tuple[int, int]:
        """See `MatrixRows.shape`."""
        rows, columns = self.stored.shape
        return self.experts * columns, rows // self.experts

    def rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.rows`."""
        return self._gathered(first, last, errors=False)

    def squared_error_rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.squared_error_rows`."""
        return self._gathered(first, last, errors=True)

    def _gathered(self, first: int, last: int, *, errors: bool) -> Array:
        """Rows of the transposed experts: columns of those stored, of which only the blocks around them are dequantised."""
        columns, width = self.stored.shape[1], self.shape[1]
        out = np.empty((last - first, width), np.float32)
        for expert in range(first // columns, (last - 1) // columns + 1):
            start, stop = max(first, expert * columns), min(last, (expert + 1) * columns)
            top, bottom = start - expert * columns, stop - expert * columns
            out[start - first : stop - first] = self._columns(expert, top, bottom, errors=errors).T
        return out

    def _columns(self, expert: int, top: int, bottom: int, *, errors: bool) -> Array:
        """Columns top:bottom of an expert as it is stored."""
        block, width = self.stored.block, self.shape[1]
        left, right = top // block, -(-bottom // block)
        rows = expert * width, (expert + 1) * width
        packed = self.stored.packed_rows(*rows)[:, left * block // 2 : right * block // 2]
        scales = self.stored.scale_rows(*rows)[:, left:right]
        if errors:
            values = times_scales(packed, cell_variances(E2M1), np.square(scales))
        else:
            values = times_scales(packed, E2M1, scales)
        return values[:, top - left * block : bottom - left * block]
