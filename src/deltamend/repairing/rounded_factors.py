"""Round the two factors of a low-rank Δ*, and measure how much that changes their product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from deltamend.checkpoint.dtypes import all_finite
from deltamend.errors import FilterError, option
from deltamend.matrices.buffers import Array
from deltamend.repairing.rounding import round_for
from deltamend.repairing.sinks import Norms
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.kept_subspace import SpectralFilter

_SLICE_ELEMENTS = 1 << 21
"""How many entries of a factor are handled at a time: 16 MiB in fp64."""


class RoundedProduct:
    """Measures the distance of the product of two rounded factors, Sᵣ·Lᵣ, to the product of the exact ones, S·L.

    S is the factor of the shorter side, L that of the longer one. Only k×k matrices are formed, for rank k:
    ‖SᵣLᵣ − SL‖² = ‖dS·Lᵣ + S·dL‖², with dS = Sᵣ − S and dL = Lᵣ − L. Nothing cancels in it, so that fp32 is precise enough.

    Args:
        short: S, shape (shorter side, k), in fp64.
        dtype: the dtype to round to.
        name: the name of the tensor, for errors.
    """

    def __init__(self, short: FloatArray, dtype: np.dtype[Any], name: str) -> None:
        self._dtype, self._name = dtype, name
        self._exact = short
        self.short = self._cast(short)
        rank = short.shape[1]
        self._long, self._cross, self._change = (np.zeros((rank, rank)) for _ in range(3))
        self._energies = np.zeros(rank)

    def add(self, exact: FloatArray) -> Array:
        """Round the next columns of L, shape (k, length), add them to the measurement, and return the rounded columns."""
        rounded = self._cast(exact)
        written = rounded.astype(np.float32)
        change = (rounded.astype(np.float64) - exact).astype(np.float32)
        self._long += written @ written.T
        self._cross += written @ change.T
        self._change += change @ change.T
        self._energies += np.einsum("ij,ij->i", exact, exact, dtype=np.float64)
        return rounded

    def measure(self, norms: Norms) -> None:
        """Fill in `kept`, `realised` and `lost`, after all of L has been added; `removed` is not known here."""
        norms.removed = None
        rounded = self.short.astype(np.float64)
        change = rounded - self._exact
        norms.kept = float(np.sum(np.einsum("ij,ij->j", self._exact, self._exact) * self._energies))
        norms.realised = float(np.sum((rounded.T @ rounded) * self._long))
        lost = np.sum((change.T @ change) * self._long) + 2.0 * np.sum((change.T @ self._exact) * self._cross)
        norms.lost = max(0.0, float(lost + np.sum((self._exact.T @ self._exact) * self._change)))

    def _cast(self, values: FloatArray) -> Array:
        with np.errstate(over="ignore"):
            rounded = round_for(values, self._dtype).astype(self._dtype)
        if not all_finite(np.ascontiguousarray(rounded)):
            raise FilterError(
                f"tensor {self._name!r}: its factors overflow in {self._dtype}; write them with {option('out_dtype', 'fp32')}"
            )
        return rounded


def slices_of_block(values: FloatArray, found: SpectralFilter) -> Iterator[tuple[int, FloatArray]]:
    """Cut a block along its longer side, so that each piece has few coefficients.

    Yields:
        The position of each piece in the block, and its values.
    """
    length = values.shape[1] if found.wide else values.shape[0]
    step = max(1, _SLICE_ELEMENTS // found.rank)
    for first in range(0, length, step):
        yield first, values[:, first : first + step] if found.wide else values[first : first + step]
