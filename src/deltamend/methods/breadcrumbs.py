"""Model breadcrumbs: drop the largest entries of the delta as outliers, and the smallest as noise."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Self

from pydantic import Field, model_validator

from deltamend.methods.elementwise import Weighted, magnitudes, scale, tiles
from deltamend.methods.largest_share import cut_at
from deltamend.methods.method import KeptDelta, TensorContext
from deltamend.methods.random_bits import tie_breaker
from deltamend.methods.trimming import count_magnitudes
from deltamend.spectrum.blocks import Block, Blocks, FloatArray


class Breadcrumbs(Weighted):
    """Drop the share γ of the entries with the largest |Δ|, and keep the share `density` that follows (Davari & Belilovsky 2024).

    All smaller entries are dropped too. The paper names the share β of small entries that is dropped instead of the share
    that is kept: `density` = 1 − β − γ, which is how mergekit counts as well. With γ = 0 this is magnitude pruning.
    """

    name: ClassVar[str] = "breadcrumbs"
    aliases: ClassVar[tuple[str, ...]] = ("breadcrumbs-ties",)
    source: ClassVar[str] = "arXiv 2312.06795"
    summary: ClassVar[str] = "Drop the largest entries as outliers and the smallest as noise."

    density: float = Field(0.143, ge=0.0, le=1.0, description="Share of the entries that is kept.")
    gamma: float = Field(
        0.007,
        ge=0.0,
        le=1.0,
        description="Share of the entries that is dropped as outliers: those of the largest magnitude.",
    )

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.density + self.gamma > 1.0 + 1e-9:
            raise ValueError(f"density and gamma sum to {self.density + self.gamma:g}; together they may not exceed 1")
        return self

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Mask one delta; see `Method.apply`."""
        if exact := self.all_or_nothing(self.density):
            return exact
        count = partial(count_magnitudes, delta)
        kept, outliers = cut_at(count, min(1.0, self.gamma + self.density)), cut_at(count, self.gamma)
        breaker = tie_breaker(context.name, delta.shape)

        def masked(block: Block) -> FloatArray:
            for tile in tiles(block, delta.shape):
                size = magnitudes(tile.values)
                mask = kept.selects(size, tile, breaker) & ~outliers.selects(size, tile, breaker)
                tile.values[~mask] = 0.0
                scale(tile.values, self.weight)
            return block.values

        return KeptDelta("filtered", "", masked)
