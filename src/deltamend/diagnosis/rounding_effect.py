"""What rounding does: how much of the noise in Δ the stored dtype explains, and how much of Δ* the written dtype loses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deltamend.diagnosis.records import Rounding
from deltamend.matrices.buffers import Array, Buffers
from deltamend.matrices.delta import DeltaBlocks
from deltamend.matrices.views import Matrix
from deltamend.methods.method import spectral_result
from deltamend.repairing.merge import write_merged
from deltamend.spectrum.kept_subspace import SpectralFilter


class DiscardingSink:
    """A sink that stores nothing, so that a repair is only measured; an implementation of `Sink`.

    Args:
        dtype: the dtype that the repair is rounded to.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def write_rows(self, start: int, values: Array) -> None:
        """Do nothing."""

    def write_columns(self, start: int, values: Array, row: int = 0) -> None:
        """Do nothing."""


def stored_as(dtype: str, packings: tuple[str | None, str | None]) -> str:
    """What the weights are rounded to: the dtype of FINETUNED or the format it is quantised in, and that of BASE if it is."""
    base, finetuned = packings
    return (finetuned or dtype) + ("" if base is None else f", and of BASE to {base},")


def rounding_record(
    delta: DeltaBlocks,
    found: SpectralFilter,
    sides: tuple[Matrix, Matrix],
    rounding: tuple[float, str],
    written: np.dtype[Any],
    name: str,
    buffers: Buffers,
) -> Rounding:
    """Measure what rounding does, exactly as a repair measures it. The values of Δ are overwritten.

    Args:
        delta: Δ of the matrix.
        found: the filter of DG-Hard.
        sides: the base and the fine-tuned matrix.
        rounding: the standard deviation of the rounding of one entry, and the dtype or format that is its cause.
        written: the dtype that a repair would write.
        name: the name of the tensor.
        buffers: the memory of this thread.
    """
    norms = write_merged(delta, spectral_result(found), sides, DiscardingSink(written), name, buffers)
    floor, stored = rounding
    return Rounding(
        stored=stored,
        floor=floor,
        share=(floor / found.noise) ** 2 if found.noise else None,
        written=str(written),
        lost=math.sqrt(norms.lost / norms.kept) if norms.kept else None,
        unmoved=(norms.unmoved or 0) / math.prod(delta.shape),
    )
