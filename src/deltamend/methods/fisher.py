"""Interpolation between base and fine-tuned weights, weighted entry by entry by Fisher information."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, FilePath, field_serializer

from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.errors import FilterError
from deltamend.methods.elementwise import tiles
from deltamend.methods.entry_file import EntryTensor
from deltamend.methods.file_parameters import name_and_content
from deltamend.methods.method import KeptDelta, Method, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray

_ROWS_ELEMENTS = 1 << 18


class Fisher(Method):
    """Δ* = Δ·αF/(αF + (1 − α)F₀), entry by entry: Fisher merging of fine-tuned and base (Matena & Raffel 2022).

    F is the diagonal of the Fisher information at the fine-tuned weights, F₀ that at the base weights. Each is a safetensors
    file that holds, under the name of each weight, a tensor of mean squared gradients; `deltamend calibrate fisher` makes
    such a file from texts. Without a file for the base, F₀ is the mean of F over the tensor (ours). Where F equals F₀, and
    where both are 0, this is WiSE-FT with α.
    """

    name: ClassVar[str] = "fisher"
    source: ClassVar[str] = "arXiv 2111.09832"
    summary: ClassVar[str] = "Interpolate, weighted by the Fisher information of each entry; needs a calibration file."

    fisher: FilePath = Field(description="Safetensors file of squared gradients at the fine-tuned weights.")
    base_fisher: FilePath | None = Field(
        None,
        description="Safetensors file of squared gradients at the base weights; by default the mean of `fisher` over each tensor.",
    )
    alpha: float = Field(0.5, ge=0.0, le=1.0, description="Weight of the fine-tuned model.")

    @field_serializer("fisher", "base_fisher")
    def _name_and_content(self, path: Path | None) -> str | None:
        return None if path is None else name_and_content(path, self.name)

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Weight one delta; see `Method.apply`."""
        if self.alpha == 0.0:
            return KeptDelta.reverted("alpha is 0")
        if self.alpha == 1.0:
            return KeptDelta.identity("alpha is 1")
        ours = EntryTensor(self.fisher, context, delta.shape, FLOAT_NAMES)
        theirs = None if self.base_fisher is None else EntryTensor(self.base_fisher, context, delta.shape, FLOAT_NAMES)
        mean = _mean(ours)

        def weighted(block: Block) -> FloatArray:
            for row, column, values in tiles(block, delta.shape):
                shape = (values.shape[0], values.shape[1])
                importance = self.alpha * _squares(ours, row, column, shape)
                other = (1.0 - self.alpha) * (mean if theirs is None else _squares(theirs, row, column, shape))
                total = importance + other
                share = np.divide(importance, total, out=np.full(shape, self.alpha), where=total > 0.0)
                values *= share
            return block.values

        return KeptDelta("filtered", "", weighted)


def _squares(tensor: EntryTensor, row: int, column: int, shape: tuple[int, int]) -> FloatArray:
    """A part as float64.

    Raises:
        FilterError: it holds numbers that are no squares.
    """
    values: FloatArray = tensor.read(row, column, shape).astype(np.float64)
    if values.size and not (values.min() >= 0.0 and np.isfinite(values.max())):
        raise FilterError(
            f"{tensor.file} holds a number that is negative or not finite, which no squared gradient is; compute it again"
        )
    return values


def _mean(tensor: EntryTensor) -> float:
    """Mean over all entries."""
    height, width = tensor.shape
    step = max(1, _ROWS_ELEMENTS // width)
    spans = ((first, min(height, first + step)) for first in range(0, height, step))
    return sum(float(_squares(tensor, first, 0, (last - first, width)).sum()) for first, last in spans) / (
        height * width
    )
