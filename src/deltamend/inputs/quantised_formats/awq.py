"""Weights of AWQ, as AutoAWQ stores them, in 4 bits.

The format (AutoAWQ's `WQLinear_GEMM`; Lin et al., arXiv 2306.00978): for a weight W of shape (outputs, inputs), `qweight`
holds eight codes along the outputs in a 32-bit word, shape (inputs, outputs/8), and `qzeros` likewise the zero points, shape
(groups, outputs/8); `scales` has shape (groups, outputs). Within a word the outputs come in the order 0, 2, 4, 6, 1, 3, 5, 7,
from the lowest four bits on. The value of an entry is (code − zero point)·scale.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, StoredTensor
from deltamend.checkpoint.file_names import CONFIG_FILE
from deltamend.errors import CheckpointError
from deltamend.inputs.quantised_formats.bit_fields import unpacked_integers
from deltamend.inputs.quantised_formats.packed_columns import HeldArrays, PackedColumns, packed_modules
from deltamend.inputs.quantised_formats.packed_weight import (
    ByRows,
    PackedWeight,
    fault,
    part,
    quantisation_config,
)

_IN_ORDER = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])
"""The place in its word of each output."""


def awq_weights(checkpoint: Checkpoint) -> Iterator[PackedWeight]:
    """Find the weights of AWQ: those whose packed codes have an eighth as many columns as their scales.

    Raises:
        CheckpointError: a part of a weight is missing, damaged, or does not fit the others; or the layout is another.
    """
    held = HeldArrays()
    for module, codes, scales in packed_modules(checkpoint):
        if len(codes.shape) == len(scales.shape) == 2 and codes.shape[1] * 8 == scales.shape[1]:
            _check_layout(checkpoint)
            yield _weight(checkpoint, module, codes, scales, held)
        elif len(codes.shape) != 2 or len(scales.shape) != 2 or codes.shape[1] != scales.shape[1]:
            raise fault(
                checkpoint,
                codes,
                f"has shape {list(codes.shape)} beside scales of {list(scales.shape)}, which fits neither GPTQ nor AWQ",
            )


def _check_layout(checkpoint: Checkpoint) -> None:
    said = quantisation_config(checkpoint.config)
    layout = (said.get("version") or said.get("format") or "gemm") if isinstance(said, dict) else "gemm"
    if str(layout).lower() != "gemm":
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG_FILE}: the weights are in the AWQ layout {layout!r}, and only 'gemm' can be read; "
            "give the unquantised checkpoint"
        )


def _weight(
    checkpoint: Checkpoint, module: str, codes: StoredTensor, scales: StoredTensor, held: HeldArrays
) -> PackedWeight:
    inputs, words = codes.shape
    groups, outputs = scales.shape
    if codes.dtype != "I32" or not groups or inputs % groups:
        raise fault(
            checkpoint, codes, f"has dtype {codes.dtype} and {inputs} inputs in {groups} groups, which do not fit"
        )
    zeros = part(checkpoint, checkpoint.tensors, codes, f"{module}.qzeros", {"I32"}, (groups, words))
    values = PackedColumns(
        checkpoint, codes, zeros, scales, (outputs, inputs), inputs // groups, None, _unpacked_rows, _in_order, held
    )
    names = frozenset(f"{module}.{leaf}" for leaf in ("qweight", "qzeros", "scales"))
    return PackedWeight(f"{module}.weight", (outputs, inputs), codes, "int4", ByRows(values), names)


def _unpacked_rows(stored: Array, first: int, last: int) -> Array:
    """See `PackedColumns.unpack_codes`."""
    start, stop = first // 8, -(-last // 8)
    found = _in_order(np.ascontiguousarray(stored[:, start:stop]))
    return found[:, first - 8 * start : last - 8 * start].T


def _in_order(words: Array) -> Array:
    """The eight codes of each word, in the order of the outputs: uint8, shape (rows, 8·words)."""
    codes = unpacked_integers(words, 4, 8 * words.shape[1]).reshape(words.shape[0], -1, 8)
    ordered: Array = codes[:, :, _IN_ORDER].reshape(words.shape[0], -1)
    return ordered
