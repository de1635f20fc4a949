"""Random bits for every entry of a matrix that depend on the seed, the tensor's name and the position alone."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from deltamend.methods.elementwise import Tile

Bits = npt.NDArray[np.uint32]

_DRAWS_A_COUNTER = 8  # Philox gives four 64-bit words for each value of its counter


def tie_breaker(name: str, shape: tuple[int, int]) -> RandomBits:
    """What decides between equal scores of one tensor."""
    return RandomBits(0, f"{name}, ties", shape)


class RandomBits:
    """32 random bits for each entry of a matrix, a function of seed, name and position alone.

    Philox (Salmon et al. 2011) is a counter-based generator: the bits at a position are computed without those before
    it, so that neither block sizes nor the order of the work change them.

    Args:
        seed: any whole number.
        name: of the tensor.
        shape: (m, n) of the matrix.
    """

    def __init__(self, seed: int, name: str, shape: tuple[int, int]) -> None:
        digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
        self._key = int.from_bytes(digest[:16], "little")
        self._columns = shape[1]

    def at(self, tile: Tile) -> Bits:
        """The bits of the entries of a tile, uint32, in its shape."""
        height, width = tile.values.shape
        if width == self._columns:
            return self._run(tile.row * width, height * width).reshape(height, width)
        starts = (tile.row + row for row in range(height))
        return np.stack([self._run(row * self._columns + tile.column, width) for row in starts])

    def _run(self, start: int, count: int) -> Bits:
        skipped = start % _DRAWS_A_COUNTER
        generator = np.random.Philox(key=self._key).advance(start // _DRAWS_A_COUNTER)
        words = generator.random_raw((skipped + count + 1) // 2).astype("<u8", copy=False).view("<u4")
        return words[skipped : skipped + count].astype(np.uint32, copy=False)
