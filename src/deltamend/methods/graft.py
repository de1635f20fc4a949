"""Grafting: keep only the entries of the delta that a sparse mask selects."""

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

    The paper learns γ on data of the task, and starts from the entries with the largest |Δ| in the whole model. Without
    `mask` this method uses that starting point, which needs no data: it is magnitude pruning over the whole model. With
    `mask`, γ is the mask that `deltamend calibrate graft` has learnt from calibration texts; `density` and `scope` then have
    no effect.
    """

    name: ClassVar[str] = "graft"
    source: ClassVar[str] = "arXiv 2302.06600"
    summary: ClassVar[str] = "Keep the entries of the whole model that changed most, or those of a learnt mask."

    density: float = Field(
        0.01, ge=0.0, le=1.0, description="Share of the entries that is kept; the paper learns masks of 0.0001."
    )
    scope: Literal["tensor", "model"] = Field(
        "model",
        description="Whether the share is counted in each tensor by itself or in the whole model; the whole model is then read two more times.",
    )
    mask: FilePath | None = Field(
        None, description="Safetensors file with a mask for each matrix; by default the largest entries are kept."
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
