"""Weights of GPTQ, as AutoGPTQ, GPTQModel and Optimum store them, in 2, 3, 4 or 8 bits.

The format (AutoGPTQ's and GPTQModel's `qlinear` modules; Frantar et al., arXiv 2210.17323): for a weight W of shape
(outputs, inputs), `qweight` holds the codes along the inputs in 32-bit words, shape (inputs·bits/32, outputs); `scales` has
shape (groups, outputs); `qzeros` holds the zero points along the outputs, shape (groups, outputs·bits/32); `g_idx` the group
of each input, in any order where the columns were sorted by activation (`desc_act`). The value of an entry is
(code − zero point)·scale. What is called `gptq`, or nothing, stores zero points less one; `gptq_v2` stores them as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    whole,
)

_BITS = (2, 3, 4, 8)
_ZEROS_LESS_ONE = {"gptq": True, "gptq_v2": False}


def gptq_weights(checkpoint: Checkpoint) -> Iterator[PackedWeight]:
    """Find the weights of GPTQ: those whose packed codes have as many columns as their scales.

    Raises:
        CheckpointError: a part of a weight is missing, damaged, or does not fit the others; or the format is another.
    """
    held = HeldArrays()
    for module, codes, scales in packed_modules(checkpoint):
        if len(codes.shape) == len(scales.shape) == 2 and codes.shape[1] == scales.shape[1]:
            yield _weight(checkpoint, module, codes, scales, held)


def _weight(
    checkpoint: Checkpoint, module: str, codes: StoredTensor, scales: StoredTensor, held: HeldArrays
) -> PackedWeight:
    tensors = checkpoint.tensors
    groups, outputs = scales.shape
    zeros = part(checkpoint, tensors, codes, f"{module}.qzeros", {"I32"})
    bits = next((bits for bits in _BITS if zeros.shape == (groups, outputs * bits // 32)), None)
    if codes.dtype != "I32" or bits is None or not groups or outputs * bits % 32 or codes.shape[0] * 32 % bits:
        raise fault(
            checkpoint,
            codes,
            f"has shape {list(codes.shape)} beside scales of {list(scales.shape)} and zero points of {list(zeros.shape)}, which do not fit",
        )
    inputs = codes.shape[0] * 32 // bits
    order = tensors.get(f"{module}.g_idx")
    group_size, sorted_groups = -(-inputs // groups), None
    if order is not None:
        part(checkpoint, tensors, codes, order.name, {"I32"}, (inputs,))
        group_of = whole(checkpoint, order)
        if inputs and not 0 <= int(group_of.min()) <= int(group_of.max()) < groups:
            raise fault(
                checkpoint, order, f"names groups from {group_of.min()} to {group_of.max()}, and there are {groups}"
            )
        if not np.array_equal(group_of, np.arange(inputs) // group_size):
            sorted_groups = order
    if sorted_groups is None and group_size * groups != inputs:
        raise fault(checkpoint, scales, f"has {groups} groups, which do not divide {inputs} inputs")
    layout = _Words(bits, inputs, outputs, _zeros_less_one(checkpoint))
    values = PackedColumns(
        checkpoint, codes, zeros, scales, (outputs, inputs), None if sorted_groups else group_size, sorted_groups,
        layout.codes, layout.zeros, held,
    )  # fmt: skip
    names = frozenset(f"{module}.{leaf}" for leaf in ("qweight", "qzeros", "scales", "g_idx"))
    return PackedWeight(f"{module}.weight", (outputs, inputs), codes, f"int{bits}", ByRows(values), names)


def _zeros_less_one(checkpoint: Checkpoint) -> bool:
    """Whether zero points are stored less one, by the config's `checkpoint_format`, or `format`, or what is usual."""
    said = quantisation_config(checkpoint.config)
    table = said if isinstance(said, dict) else {}
    found = table.get("checkpoint_format") or table.get("format") or "gptq"
    if not isinstance(found, str) or found not in _ZEROS_LESS_ONE:
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG_FILE}: the weights are in the GPTQ layout {found!r}, which deltamend cannot read; "
            "save it with checkpoint_format 'gptq', or give the unquantised checkpoint"
        )
    return _ZEROS_LESS_ONE[found]


@dataclass(frozen=True)
class _Words:
    """How codes and zero points lie in their words."""

    bits: int
    inputs: int
    outputs: int
    zeros_less_one: bool

    def codes(self, stored: Array, first: int, last: int) -> Array:
        """See `PackedColumns.unpack_codes`."""
        return unpacked_integers(np.ascontiguousarray(stored[:, first:last].T), self.bits, self.inputs)

    def zeros(self, stored: Array) -> Array:
        """See `PackedColumns.unpack_zeros`. AutoGPTQ lets the greatest code plus one be 0."""
        found = unpacked_integers(stored, self.bits, self.outputs)
        return (found + np.uint8(1)) & np.uint8(2**self.bits - 1) if self.zeros_less_one else found
