"""Weights whose every entry is a byte, an 8-bit float or integer, times a scale that a block of entries shares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, StoredTensor
from deltamend.checkpoint.dtypes import FLOAT_NAMES, NUMPY_DTYPES
from deltamend.errors import CheckpointError
from deltamend.inputs.quantised_formats.codebooks import cell_variances, powers_of_two
from deltamend.inputs.quantised_formats.packed_weight import (
    ByRows,
    PackedWeight,
    fault,
    float_values,
    part,
    quantisation_config,
    weight_schemes,
)

_WEIGHT = ".weight"
_PACKINGS = {"F8_E4M3": "fp8 (e4m3)", "F8_E5M2": "fp8 (e5m2)", "I8": "int8"}
# What is stored beside `X.weight` as its scales: the weight is code × scale in all of them, whatever the name says.
_SCALES = (".weight_scale_inv", ".weight_scale")
_EXPONENTS = frozenset({"U8", "F8_E8M0"})
"""Scales that are powers of two, 2^(code − 127), in both of these dtypes."""
_ZERO_POINT = ".weight_zero_point"


def scaled_code_weights(checkpoint: Checkpoint) -> Iterator[PackedWeight]:
    """Find the weights in 8 bits with scales beside them.

    Those of the methods `fp8` (a scale for each block of DeepSeek and Qwen checkpoints, or one a tensor), `fbgemm_fp8` (one a
    row), and `compressed-tensors` with 8-bit floats or integers (one a tensor, row, group or block; integers may have a zero
    point for each scale). Scales of 8-bit floats may be powers of two, as in MXFP8.

    Raises:
        CheckpointError: scales are missing, or do not fit; or the bytes hold two 4-bit floats each.
    """
    held = checkpoint.tensors
    for name, codes in list(held.items()):
        if codes.dtype not in _PACKINGS or name.endswith((*_SCALES, _ZERO_POINT)):
            continue
        module = name.removesuffix(_WEIGHT)
        scale = next((held[module + suffix] for suffix in _SCALES if module + suffix in held), None)
        if scale is None:
            if codes.dtype == "I8":  # perhaps of another format
                continue
            raise CheckpointError(
                f"{checkpoint.folder}: tensor {name!r} ({codes.dtype}) has no scales beside it; give the unquantised checkpoint"
            )
        if codes.dtype == "I8" and _holds_pairs(checkpoint, scale):
            raise CheckpointError(
                f"{checkpoint.folder}: tensor {name!r} holds two 4-bit floats in each byte, as the method 'fp8' stores experts, "
                "which deltamend cannot read; give the unquantised checkpoint"
            )
        block = _block(checkpoint, codes, scale)
        zero = held.get(module + _ZERO_POINT)
        if zero is not None:
            part(checkpoint, held, codes, zero.name, {"I8", "I32", "I64", "U8", *FLOAT_NAMES, "F8_E4M3"}, scale.shape)
        values = ScaledCodes(checkpoint, codes, scale, zero, block)
        names = frozenset({name, scale.name, module + _ZERO_POINT})
        yield PackedWeight(name, codes.shape, codes, _PACKINGS[codes.dtype], ByRows(values), names)


def _holds_pairs(checkpoint: Checkpoint, scale: StoredTensor) -> bool:
    """Whether bytes beside such a scale are no integers; the method `fp8` has none, and only it writes inverse scales."""
    said = quantisation_config(checkpoint.config)
    method = said.get("quant_method") if isinstance(said, dict) else None
    return method == "fp8" or scale.name.endswith("_inv")


def _block(checkpoint: Checkpoint, codes: StoredTensor, scale: StoredTensor) -> tuple[int, int]:
    """Height and width of the block of entries that share a scale."""
    powers = scale.dtype in _EXPONENTS and codes.dtype != "I8"
    if not (powers or scale.dtype in FLOAT_NAMES) or len(codes.shape) != 2 or not codes.elements:
        raise CheckpointError(
            f"{checkpoint.folder}: tensor {codes.name!r} has scales that cannot be read; give the unquantised checkpoint"
        )
    rows, columns = codes.shape
    if scale.elements == 1:
        return rows, columns
    if scale.shape in {(rows, 1), (rows,)}:
        return 1, columns
    if len(scale.shape) == 2:
        config = quantisation_config(checkpoint.config)
        table = config if isinstance(config, dict) else {}
        stated = (scheme.get("block_structure") for scheme in weight_schemes(checkpoint.config))
        block: Any = table.get("weight_block_size") or next((found for found in stated if found), None)
        sizes = (
            isinstance(block, list) and len(block) == 2 and all(isinstance(size, int) and size > 0 for size in block)
        )
        if sizes and scale.shape == (-(-rows // block[0]), -(-columns // block[1])):
            return block[0], block[1]
        if not block and scale.shape[0] == rows and scale.shape[1] and columns % scale.shape[1] == 0:
            return 1, columns // scale.shape[1]
    raise fault(checkpoint, scale, f"has shape {list(scale.shape)}, which config.json does not account for")


@dataclass(frozen=True, eq=False)
class ScaledCodes:
    """(Code − zero point) · scale, computed in fp32; an implementation of `MatrixRows`.

    Attributes:
        checkpoint: the checkpoint.
        codes: the stored codes, of one byte, shape (rows, columns).
        scale: the stored scales, one a block, row by row.
        zero: the stored zero points, one a block; None where there are none.
        block: height and width of a block.
        factor: what everything is multiplied with at the end.
    """

    checkpoint: Checkpoint
    codes: StoredTensor
    scale: StoredTensor
    zero: StoredTensor | None
    block: tuple[int, int]
    factor: np.float32 | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """See `MatrixRows.shape`."""
        return self.codes.shape[0], self.codes.shape[1]

    def rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.rows`."""
        columns = self.codes.shape[1]
        values = float_values(self.checkpoint, self.codes, first * columns, last * columns).reshape(-1, columns)
        if self.zero is not None:
            values -= self._of_blocks(self.zero, first, last)
        values *= self._of_blocks(self.scale, first, last)
        if self.factor is not None:
            values *= self.factor
        return values

    def squared_error_rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.squared_error_rows`: a twelfth of the squared scale for integers, else by the cells of the floats."""
        columns = self.codes.shape[1]
        scales = np.square(self._of_blocks(self.scale, first, last) * (self.factor or np.float32(1)))
        if self.codes.dtype == "I8":
            return np.array(np.broadcast_to(scales / np.float32(12), (last - first, columns)))
        codes = self.checkpoint.values(self.codes, first * columns, last * columns).view(np.uint8).reshape(-1, columns)
        errors: Array = _float_cells(self.codes.dtype)[codes] * scales
        return errors

    def _of_blocks(self, stored: StoredTensor, first: int, last: int) -> Array:
        """What is stored for each block, for each entry of rows first:last, or of one column that stands for all."""
        height, width = self.block
        columns = self.codes.shape[1]
        across = -(-columns // width)
        top, bottom = first // height, (last - 1) // height + 1
        blocks = _numbers(self.checkpoint, stored, top * across, bottom * across).reshape(-1, across)
        rows = blocks[np.arange(first, last) // height - top]
        spread: Array = rows if across == 1 else np.repeat(rows, width, axis=1)[:, :columns]
        return spread


def _numbers(checkpoint: Checkpoint, stored: StoredTensor, start: int, stop: int) -> Array:
    """Entries [start, stop) of the stored scales or zero points, fp32."""
    if stored.dtype not in _EXPONENTS or stored.name.endswith(_ZERO_POINT):
        return float_values(checkpoint, stored, start, stop)
    return powers_of_two(checkpoint.values(stored, start, stop).view(np.uint8))


def _float_cells(dtype: str) -> Array:
    """The mean squared rounding error of each 8-bit float, by its bits; 0 for what is not finite."""
    values = np.arange(256, dtype=np.uint8).view(NUMPY_DTYPES[dtype]).astype(np.float32)
    finite = np.isfinite(values)
    errors = np.zeros(256, np.float32)
    errors[finite] = cell_variances(values[finite])
    return errors
