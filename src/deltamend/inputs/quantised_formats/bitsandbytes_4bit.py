"""Weights of bitsandbytes in 4 bits: nf4 and fp4, also with scales that are quantised themselves (double quantisation).

The format (bitsandbytes, `functional.QuantState` and `dequantize_4bit`; Dettmers et al., QLoRA, arXiv 2305.14314): the
entries of a weight W, row by row, are cut into blocks. Each entry is a code of 4 bits, two codes a byte, the first in the
upper bits; its value is `quant_map[code] · absmax[block]`. With double quantisation `absmax` is itself a code of 8 bits, and
the scale is `nested_quant_map[code] · nested_absmax[nested block] + nested_offset`. Everything is computed in fp32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltamend.checkpoint.architecture import is_conv1d, leaf_of, module_of
from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, QuantisedTensor, StoredTensor
from deltamend.checkpoint.dtypes import itemsize
from deltamend.inputs.quantised_formats.codebooks import cell_variances, pairs_table, unpacked
from deltamend.inputs.quantised_formats.packed_weight import (
    ByRows,
    PackedWeight,
    fault,
    float_values,
    part,
    whole,
)
from deltamend.inputs.quantised_formats.transposed import Transposed
from deltamend.machine.json_text import JsonError, parse_json

_STATE = re.compile(r"(?P<weight>.+)\.quant_state\.bitsandbytes__(?P<kind>nf4|fp4)$")
_LONGEST_STATE = 4096
_BLOCK_SIZES = frozenset({32, 64, 128, 256, 512, 1024, 2048, 4096})
_STORAGES = frozenset({"U8", "BF16", "F16", "F32"})
"""`bnb_4bit_quant_storage`: the same bytes under another dtype, which FSDP asks for."""


def bitsandbytes_4bit_weights(checkpoint: Checkpoint) -> Iterator[PackedWeight]:
    """Find the weights in nf4 or fp4.

    Raises:
        CheckpointError: a part of a weight is missing, damaged, or does not fit the others.
    """
    for name, state in list(checkpoint.tensors.items()):
        if found := _STATE.fullmatch(name):
            yield _weight(checkpoint, found["weight"], found["kind"], state)


def _weight(checkpoint: Checkpoint, name: str, kind: str, state: StoredTensor) -> PackedWeight:
    held = checkpoint.tensors
    codes = part(checkpoint, held, state, name, _STORAGES)
    said = _read_state(checkpoint, state)
    shape, block_size = _shape(checkpoint, state, said), said.get("blocksize")
    if not isinstance(block_size, int) or block_size not in _BLOCK_SIZES:
        raise fault(checkpoint, state, f"says blocksize {block_size!r}, which bitsandbytes does not write")
    elements = math.prod(shape)
    if codes.elements * itemsize(codes.dtype) != -(-elements // 2):
        raise fault(checkpoint, codes, f"does not hold the {elements} codes of 4 bits that its quant_state says")
    nested = f"{name}.nested_absmax" in held
    blocks = (-(-elements // block_size),)
    absmax = part(checkpoint, held, codes, f"{name}.absmax", {"U8"} if nested else {"F32"}, blocks)
    quant_map = part(checkpoint, held, codes, f"{name}.quant_map", {"F32"}, (16,))
    scales = Scales(checkpoint, absmax, _nesting(checkpoint, name, said, codes, blocks[0]) if nested else None)
    values: QuantisedTensor = FourBitBlocks(
        checkpoint, codes, whole(checkpoint, quant_map), scales, block_size, elements
    )
    if is_conv1d(checkpoint.config, leaf_of(module_of(name))) and len(shape) == 2:
        values, shape = ByRows(Transposed(values, (shape[0], shape[1]))), shape[::-1]
    parts = frozenset(other for other in held if other == name or other.startswith(f"{name}."))
    return PackedWeight(name, shape, codes, kind, values, parts)


def _read_state(checkpoint: Checkpoint, state: StoredTensor) -> Mapping[str, Any]:
    """The JSON that bitsandbytes packs into a tensor of bytes."""
    if state.dtype != "U8" or state.elements > _LONGEST_STATE:
        raise fault(checkpoint, state, "is no short text of bytes")
    try:
        said = parse_json(whole(checkpoint, state).tobytes())
    except JsonError as error:
        raise fault(checkpoint, state, "holds no JSON") from error
    if not isinstance(said, dict):
        raise fault(checkpoint, state, "holds no JSON object")
    return said


def _shape(checkpoint: Checkpoint, state: StoredTensor, said: Mapping[str, Any]) -> tuple[int, ...]:
    shape = said.get("shape")
    sizes = isinstance(shape, list) and all(type(size) is int and 0 < size < 2**40 for size in shape)
    if not isinstance(shape, list) or not sizes or not 1 <= len(shape) <= 4:
        raise fault(checkpoint, state, f"says shape {str(shape)[:40]!r}, which is no list of sizes")
    return tuple(shape)


@dataclass(frozen=True)
class _Nesting:
    """How the scales themselves are quantised: scale = codebook[code] · absmax[code's block] + offset."""

    codebook: Array
    absmax: Array
    block_size: int
    offset: np.float32


def _nesting(checkpoint: Checkpoint, name: str, said: Mapping[str, Any], codes: StoredTensor, scales: int) -> _Nesting:
    size, offset = said.get("nested_blocksize"), said.get("nested_offset")
    if type(size) is not int or not 0 < size < 2**32 or not isinstance(offset, int | float):
        raise fault(
            checkpoint, codes, "has nested scales, but its quant_state says no nested_blocksize or nested_offset"
        )
    codebook = part(checkpoint, checkpoint.tensors, codes, f"{name}.nested_quant_map", {"F32"}, (256,))
    absmax = part(checkpoint, checkpoint.tensors, codes, f"{name}.nested_absmax", {"F32"}, (-(-scales // size),))
    return _Nesting(whole(checkpoint, codebook), whole(checkpoint, absmax), size, np.float32(offset))


@dataclass(frozen=True, eq=False)
class Scales:
    """The scale of each block, which may be quantised itself."""

    checkpoint: Checkpoint
    absmax: StoredTensor
    nesting: _Nesting | None

    def read(self, first: int, last: int) -> Array:
        """The scales of blocks first:last, fp32."""
        if self.nesting is None:
            return float_values(self.checkpoint, self.absmax, first, last)
        codes = self.checkpoint.values(self.absmax, first, last)
        scales = self.nesting.codebook[codes]
        scales *= self.nesting.absmax[np.arange(first, last) // self.nesting.block_size]
        scales += self.nesting.offset
        return scales


@dataclass(frozen=True, eq=False)
class FourBitBlocks:
    """Codes of 4 bits in blocks, each with a scale, across the ends of rows; an implementation of `QuantisedTensor`.

    Attributes:
        checkpoint: the checkpoint.
        codes: the stored codes.
        codebook: the value of each code, fp32.
        scales: of the blocks.
        block_size: entries of a block.
        elements: how many entries the weight has.
    """

    checkpoint: Checkpoint
    codes: StoredTensor
    codebook: Array
    scales: Scales
    block_size: int
    elements: int

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        values, scales, offset = self._blocks(start, stop, self.codebook)
        values *= scales[:, None]
        out[:] = values.reshape(-1)[offset : offset + stop - start]

    def squared_errors(self, start: int, stop: int) -> Array:
        """See `Checkpoint.squared_errors`."""
        values, scales, offset = self._blocks(start, stop, cell_variances(self.codebook))
        values *= np.square(scales)[:, None]
        found: Array = values.reshape(-1)[offset : offset + stop - start]
        return found

    def _blocks(self, start: int, stop: int, codebook: Array) -> tuple[Array, Array, int]:
        """The whole blocks around a range of entries: table values, scales, and where in them the range starts."""
        first, last = start // self.block_size, -(-stop // self.block_size)
        begin, end = first * self.block_size // 2, min(last * self.block_size // 2, -(-self.elements // 2))
        packed = np.zeros((last - first) * self.block_size // 2, np.uint8)
        self.checkpoint.read_into(self.codes, begin, packed[: end - begin].data)
        values = unpacked(packed, pairs_table(codebook, high_first=True)).reshape(-1, self.block_size)
        return values, self.scales.read(first, last), start - first * self.block_size
