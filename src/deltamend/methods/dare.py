"""DARE: drop entries of the delta at random and rescale the rest."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from deltamend.methods.elementwise import Weighted, scale, tiles
from deltamend.methods.method import KeptDelta, TensorContext
from deltamend.methods.random_bits import RandomBits
from deltamend.spectrum.blocks import Block, Blocks, FloatArray


class Dare(Weighted):
    """Drop each entry of Δ with probability p = 1 − density and multiply the rest by 1/(1 − p) (Yu et al. 2024).

    On average over random masks, Δ* equals Δ. Which entries are dropped depends only on the seed, the tensor's name and
    the position of the entry. mergekit's `dare_linear` takes the same density, but by default rescales by the ratio of the
    sums of |Δ| before and after, which is 1/(1 − p) only on average. The sign election of `dare_ties` changes nothing when
    there is one fine-tuned model.
    """

    name: ClassVar[str] = "dare"
    aliases: ClassVar[tuple[str, ...]] = ("dare-linear", "dare-ties")
    source: ClassVar[str] = "arXiv 2311.03099"
    summary: ClassVar[str] = "Drop entries at random and rescale the rest."

    density: float = Field(0.5, ge=0.0, le=1.0, description="Probability that an entry is kept, 1 − p in the paper.")
    rescale: bool = Field(True, description="Whether the entries that are kept are multiplied by 1/density.")
    seed: int = Field(0, ge=0, description="Seed of the random mask.")

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Drop entries of one delta; see `Method.apply`."""
        if exact := self.all_or_nothing(self.density):
            return exact
        bits = RandomBits(self.seed, context.name, delta.shape)
        limit = self.density * 2.0**32
        factor = self.weight / self.density if self.rescale else self.weight

        def dropped(block: Block) -> FloatArray:
            for tile in tiles(block, delta.shape):
                tile.values[bits.at(tile) >= np.float64(limit)] = 0.0
                scale(tile.values, factor)
            return block.values

        return KeptDelta("filtered", "", dropped)
