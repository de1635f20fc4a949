"""The fine-tuned weights, for methods that filter them and not the delta."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deltamend.methods.method import Weights
from deltamend.spectrum.blocks import Block, Blocks, FloatArray


@dataclass(frozen=True)
class FinetunedBlocks:
    """W_ft = W_base + Δ, read block by block, rounded to the dtype of Δ.

    Args:
        delta: Δ.
        base: W_base.
    """

    delta: Blocks
    base: Weights

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.delta.shape

    def __iter__(self) -> Iterator[Block]:
        for block in self.delta:
            yield Block(block.start, block.stop, self.block(block))

    def block(self, block: Block) -> FloatArray:
        """The block of W_ft that belongs to a block of Δ; a buffer that the next one overwrites."""
        weights = self.base.read(block.start, block.stop)
        with np.errstate(invalid="ignore"):  # the filter says what is damaged
            weights += block.values
        return weights


@dataclass(frozen=True)
class BaseOnly:
    """W_base in the blocks of Δ."""

    delta: Blocks
    base: Weights

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.delta.shape

    def __iter__(self) -> Iterator[Block]:
        for block in self.delta:
            yield Block(block.start, block.stop, self.base.read(block.start, block.stop))
