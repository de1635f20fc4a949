"""Grafting: skill localization with a sparse mask."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, FilePath, field_serializer

from deltamend.methods.elementwise import scale, tiles
from deltamend.methods.entry_file import EntryTensor
from deltamend.methods.file_parameters import name_and_content
from deltamend.methods.largest_share import Cut
from deltamend.methods.method import Deltas, KeptDelta, TensorContext
from deltamend.methods.trimming import Trimmed
from deltamend.spectrum.blocks import Block, Blocks, FloatArray

MASK_DTYPES = frozenset({"U8", "BOOL"})


class Graft(Trimmed):
    """W* = W_base + γ ⊙ Δ with a sparse mask γ (Panigrahi et al. 2023).

    The paper learns γ on the task's data, starting from the entries of the largest |Δ| in the whole model. Without a
    `mask` here is that starting point, which needs no data; it is magnitude pruning over the whole model. With one, γ is
    what `deltamend calibrate graft` learnt from a calibration set; `density` and `scope` then mean nothing, as the mask
    has its own.
    """

    name: ClassVar[str] = "graft"
    source: ClassVar[str] = "arXiv 2302.06600"
    summary: ClassVar[str] = "Graft the most changed entries of the whole model onto the base."

    density: float = Field(
        0.01, ge=0.0, le=1.0, description="Share of the entries that is grafted; the paper learns masks of 0.0001."
    )
    scope: Literal["tensor", "model"] = Field(
        "model",
        description="Whether the share is kept of each tensor or of the whole model, which is read two times more.",
    )
    mask: FilePath | None = Field(
        None, description="Safetensors file with a mask for each matrix; none keeps the largest entries."
    )

    @field_serializer("mask")
    def _name_and_content(self, path: Path | None) -> str | None:
        return None if path is None else name_and_content(path, self.name)

    def survey(self, deltas: Deltas) -> Cut | None:
        """See `Trimmed.survey`; a mask needs none."""
        return None if self.mask is not None else super().survey(deltas)

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Mask one delta; see `Method.apply`."""
        if self.mask is None:
            return super().apply(delta, context)
        mask = EntryTensor(self.mask, context, delta.shape, MASK_DTYPES)

        def grafted(block: Block) -> FloatArray:
            for row, column, values in tiles(block, delta.shape):
                values[mask.read(row, column, (values.shape[0], values.shape[1])) == 0] = 0.0
                scale(values, self.weight)
            return block.values

        return KeptDelta("filtered", "", grafted)
