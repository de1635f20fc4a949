"""Weights of GPTQ and AWQ, which are stored as (inputs, outputs), so that a row of W is a column of what is stored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, Checkpoint, StoredTensor
from deltamend.inputs.quantised_formats.packed_weight import SCALE_DTYPES, part, whole

_CODES = ".qweight"


def packed_modules(checkpoint: Checkpoint) -> Iterator[tuple[str, StoredTensor, StoredTensor]]:
    """The modules of GPTQ and AWQ in a checkpoint: the name of each, its stored codes and its stored scales.

    Raises:
        CheckpointError: codes have no scales beside them.
    """
    for name, codes in list(checkpoint.tensors.items()):
        if name.endswith(_CODES):
            module = name.removesuffix(_CODES)
            yield module, codes, part(checkpoint, checkpoint.tensors, codes, f"{module}.scales", SCALE_DTYPES)


@dataclass(frozen=True, eq=False)
class PackedColumns:
    """W = (code − zero point) · scale, with a zero point and a scale for each output and each group of inputs.

    An implementation of `MatrixRows`.

    Attributes:
        checkpoint: the checkpoint.
        codes: the stored codes, int32.
        zeros: the stored zero points, int32.
        scales: the stored scales, shape (groups, outputs).
        shape: (outputs, inputs) of W.
        group_size: inputs of a group, where all groups are equally large and follow one another; else None.
        groups: the stored group of each input, where they do not; else None.
        unpack_codes: makes the codes of W's rows first:last, uint8 (rows, inputs), of the stored codes.
        unpack_zeros: makes the zero points, uint8 (groups, outputs), of those stored.
        held: what each thread holds; the weights of a checkpoint share it, so that memory does not grow with the model.
    """

    checkpoint: Checkpoint
    codes: StoredTensor
    zeros: StoredTensor
    scales: StoredTensor
    shape: tuple[int, int]
    group_size: int | None
    groups: StoredTensor | None
    unpack_codes: Callable[[Array, int, int], Array]
    unpack_zeros: Callable[[Array], Array]
    held: HeldArrays

    def rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.rows`."""
        arrays = self.held.of(self)
        values = np.ascontiguousarray(self.unpack_codes(arrays.codes, first, last)).astype(np.float32)
        if self.group_size is not None:
            grouped = values.reshape(last - first, -1, self.group_size)
            grouped -= arrays.zeros[first:last, :, None]
            grouped *= arrays.scales[first:last, :, None]
        else:
            values -= arrays.zeros[first:last][:, arrays.groups]
            values *= arrays.scales[first:last][:, arrays.groups]
        return values

    def squared_error_rows(self, first: int, last: int) -> Array:
        """See `MatrixRows.squared_error_rows`: a twelfth of the squared scale, as the codes are evenly spaced."""
        arrays = self.held.of(self)
        by_group = np.square(arrays.scales[first:last]) / np.float32(12)
        if self.group_size is not None:
            return np.repeat(by_group, self.group_size, axis=1)
        spread: Array = by_group[:, arrays.groups]
        return spread


@dataclass(frozen=True)
class _Arrays:
    """Of one weight: the stored codes; zero points and scales, fp32 (outputs, groups); the group of each input."""

    codes: Array
    zeros: Array
    scales: Array
    groups: Array


class HeldArrays(threading.local):
    """The codes, zero points and scales that a thread has read last: at most a byte and a bit for each entry of a matrix."""

    def __init__(self) -> None:
        self._weight: PackedColumns | None = None
        self._arrays: _Arrays | None = None

    def of(self, weight: PackedColumns) -> _Arrays:
        """Those of a weight, read where they are not held."""
        if self._arrays is None or self._weight is not weight:
            self._arrays = None  # what was held is freed before more is read
            checkpoint = weight.checkpoint
            zeros = weight.unpack_zeros(whole(checkpoint, weight.zeros))
            scales = whole(checkpoint, weight.scales)
            groups = np.zeros(0, np.int32) if weight.groups is None else whole(checkpoint, weight.groups)
            self._arrays = _Arrays(
                whole(checkpoint, weight.codes),
                np.ascontiguousarray(zeros.T.astype(np.float32)),
                np.ascontiguousarray(scales.T.astype(np.float32)),
                groups,
            )
            self._weight = weight
        return self._arrays
