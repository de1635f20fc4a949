"""FAPM: forgetting-aware pruning of the delta."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from pydantic import Field

from deltamend.methods.elementwise import Weighted, magnitudes, scale, summed, tiles_with
from deltamend.methods.largest_share import cut_at
from deltamend.methods.method import Counts, KeptDelta, TensorContext
from deltamend.methods.random_bits import tie_breaker
from deltamend.spectrum.blocks import Block, Blocks, FloatArray


class Fapm(Weighted):
    """Keep the entries of the highest score |Δ| − mean|W|·|Δ|/|W|, W the base weights (Huang et al. 2025).

    The score is |Δ|·(1 − mean|W|/|W|): it is high for a large change, and low for a change that is large in proportion to
    its weight. An entry that did not change has the score 0 whatever its weight. An entry that changed from a weight of 0
    has the score −∞, the limit for small weights, and is kept last. After training in pure bf16, most entries did not
    change at all: their score of 0 is above that of every changed entry with a negative score, so that little or nothing of
    the update is kept.
    """

    name: ClassVar[str] = "fapm"
    source: ClassVar[str] = "arXiv 2509.08255"
    summary: ClassVar[str] = "Keep entries that changed much, unless the change is large in proportion to the weight."

    density: float = Field(0.1, ge=0.0, le=1.0, description="Share of the entries of each tensor that is kept.")

    def apply(self, delta: Blocks, context: TensorContext) -> KeptDelta:
        """Prune one delta; see `Method.apply`."""
        if exact := self.all_or_nothing(self.density):
            return exact
        mean = _mean_magnitude(delta, context)

        def total(count: Callable[[FloatArray], Counts]) -> Counts:
            return summed(
                count(fapm_score(tile.values, base, mean))
                for block in delta
                for tile, base in tiles_with(context.base.read(block.start, block.stop), block, delta.shape)
            )

        cut = cut_at(total, self.density)
        breaker = tie_breaker(context.name, delta.shape)

        def pruned(block: Block) -> FloatArray:
            for tile, base in tiles_with(context.base.read(block.start, block.stop), block, delta.shape):
                tile.values[~cut.selects(fapm_score(tile.values, base, mean), tile, breaker)] = 0.0
                scale(tile.values, self.weight)
            return block.values

        return KeptDelta("filtered", "", pruned)


def fapm_score(delta: FloatArray, base: FloatArray, mean: float) -> FloatArray:
    """|Δ| − mean·|Δ|/|W| entry by entry, 0 where Δ = 0, −∞ where only W = 0.

    Args:
        delta: any shape, finite.
        base: W, the same shape and dtype.
        mean: mean |W| over the tensor.
    """
    size = magnitudes(delta)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        score = size - size / np.abs(base) * base.dtype.type(mean)
    score[base == 0.0] = -np.inf
    score[size == 0.0] = 0.0
    return score


def _mean_magnitude(delta: Blocks, context: TensorContext) -> float:
    """Mean |W|, summed line by line along the longer side, so that block sizes do not change its last bits."""
    m, n = delta.shape
    total = 0.0
    for block in delta:
        lines = context.base.read(block.start, block.stop) if m > n else context.base.read(block.start, block.stop).T
        sums = np.array([np.sum(np.abs(line), dtype=np.float64) for line in lines])
        total = float(np.add.accumulate(np.concatenate([[total], sums]))[-1])
    return total / (m * n)
