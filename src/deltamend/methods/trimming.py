"""Keep the entries of the largest magnitude: what `magnitude`, `ties` and `graft` do with one fine-tuned model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from deltamend.methods.elementwise import Weighted, magnitudes, scale, summed, tiles
from deltamend.methods.largest_share import Cut, cut_at
from deltamend.methods.method import Counts, Deltas, KeptDelta, TensorContext
from deltamend.methods.random_bits import tie_breaker
from deltamend.spectrum.blocks import Block, Blocks, FloatArray


def count_magnitudes(delta: Blocks, count: Callable[[FloatArray], Counts]) -> Counts:
    """What `count` counts in the magnitudes of one delta."""
    return summed(count(magnitudes(tile.values)) for block in delta for tile in tiles(block, delta.shape))


class Trimmed(Weighted):
    """Δ* = λ·Δ where |Δ| is among the largest, else 0."""

    density: float = Field(
        0.2, ge=0.0, le=1.0, description="Share of the entries that is kept, those of the largest magnitude."
    )
    scope: Literal["tensor", "model"] = Field(
        "tensor",
        description="Whether the share is counted in each tensor by itself or in the whole model; the whole model is then read two more times.",
    )

    def survey(self, deltas: Deltas) -> Cut | None:
        """With `scope=model`, where to cut the magnitudes of the whole model."""
        if self.scope == "tensor" or self.all_or_nothing(self.density):
            return None
        return cut_at(lambda count: deltas.total(lambda delta, _: count_magnitudes(delta, count)), self.density)

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Trim one delta; see `Method.apply`."""
        if exact := self.all_or_nothing(self.density):
            return exact
        cut: Cut = context.surveyed or cut_at(partial(count_magnitudes, delta), self.density)
        if cut.score == 0.0 and self.weight == 1.0:
            return KeptDelta.identity("fewer entries changed than may be kept")
        breaker = tie_breaker(context.name, delta.shape)

        def trimmed(block: Block) -> FloatArray:
            for tile in tiles(block, delta.shape):
                tile.values[~cut.selects(np.abs(tile.values), tile, breaker)] = 0.0
                scale(tile.values, self.weight)
            return block.values

        return KeptDelta("filtered", "", trimmed)
