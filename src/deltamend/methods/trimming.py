"""Keep the entries of the largest magnitude: what `magnitude`, `ties` and `graft` do with one fine-tuned model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from deltamend.methods.elementwise import Weighted, kth_largest, magnitude, parts, scale, summed
from deltamend.methods.method import Counts, Deltas, KeptDelta, TensorContext
from deltamend.spectrum.blocks import Block, Blocks, FloatArray


def count_magnitudes(delta: Blocks, count: Callable[[FloatArray], Counts]) -> Counts:
    """What `count` counts in the magnitudes of one delta."""
    return summed(count(magnitude(part.values)) for block in delta for part in parts(block, delta.shape))


class Trimmed(Weighted):
    """Δ* = λ·Δ where |Δ| is among the largest, else 0."""

    density: float = Field(
        0.2, ge=0.0, le=1.0, description="Share of the entries that is kept; entries of equal magnitude stay together."
    )
    scope: Literal["tensor", "model"] = Field(
        "tensor",
        description="Whether the share is kept of each tensor or of the whole model, which is read two times more.",
    )

    def survey(self, deltas: Deltas) -> float | None:
        """The smallest magnitude that is kept anywhere, for the scope of the whole model."""
        if self.scope == "tensor" or self.all_or_nothing(self.density):
            return None
        return kth_largest(lambda count: deltas.total(lambda delta, _: count_magnitudes(delta, count)), self.density)

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Trim one delta; see `Method.apply`."""
        if exact := self.all_or_nothing(self.density):
            return exact
        smallest = context.surveyed
        if smallest is None:
            smallest = kth_largest(partial(count_magnitudes, delta), self.density)
        if smallest == 0.0 and self.weight == 1.0:
            return KeptDelta.identity("fewer entries changed than may be kept")

        def trimmed(block: Block) -> FloatArray:
            for part in parts(block, delta.shape):
                part.values[np.abs(part.values).astype(np.float32, copy=False) < smallest] = 0.0
                scale(part.values, self.weight)
            return block.values

        return KeptDelta("filtered", "", trimmed)
