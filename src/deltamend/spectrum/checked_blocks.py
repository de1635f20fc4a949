"""Check the blocks of a delta as they are read: their shapes, their order and their dtype."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deltamend.errors import FilterError
from deltamend.spectrum.blocks import ArrayBlocks, Block, Blocks, FloatArray

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class CheckedBlocks:
    """Blocks that are as the contract says, or a `FilterError`; remembers the roundoff of their dtype."""

    def __init__(self, inner: Blocks) -> None:
        self._inner = inner
        self.shape = inner.shape
        self.roundoff = 0.0

    def __iter__(self) -> Iterator[Block]:
        m, n = self.shape
        position = 0
        for block in self._inner:
            expected = (m, block.stop - block.start) if m <= n else (block.stop - block.start, n)
            if block.start != position or block.values.shape != expected:
                raise FilterError(
                    f"a block of shape {block.values.shape} at {block.start}:{block.stop} does not follow"
                )
            if block.values.dtype not in _DTYPES:
                raise FilterError(f"expected float32 or float64 in native byte order; got {block.values.dtype}")
            self.roundoff = max(self.roundoff, float(np.finfo(block.values.dtype).eps))
            position = block.stop
            yield block
        if position != max(m, n):
            raise FilterError(f"the blocks end at {position} of {max(m, n)}")


def checked_blocks_of(delta: FloatArray | Blocks) -> CheckedBlocks:
    """A delta, in memory or in blocks, as blocks that are checked as they are read.

    Args:
        delta: shape (m, n), both at least 1.

    Raises:
        FilterError: it is no matrix, or an empty one.
    """
    if isinstance(delta, np.ndarray) and delta.ndim != 2:
        raise FilterError(f"expected a matrix; got an array of shape {delta.shape}")
    blocks = CheckedBlocks(ArrayBlocks(delta) if isinstance(delta, np.ndarray) else delta)
    if min(blocks.shape) < 1:
        raise FilterError(f"expected a non-empty matrix; got shape {blocks.shape}")
    return blocks
