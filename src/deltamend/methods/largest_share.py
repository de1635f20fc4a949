"""Select the share of the entries with the largest scores, in two readings and without sorting them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deltamend.methods.elementwise import Tile
from deltamend.methods.method import Counts
from deltamend.methods.random_bits import Bits, RandomBits
from deltamend.spectrum.blocks import FloatArray

_DIGIT = 1 << 16  # a float32 key is selected by its upper and then by its lower half


class Cut(NamedTuple):
    """Which entries a share of the largest scores is: those above `score`, and the share `ties` of those that equal it.

    A bfloat16 checkpoint has few distinct changes: in a real one, keeping ties together made 33% of a share of 20%.
    Which of them are selected is decided by random bits, and a larger cut selects all that a smaller one does.
    """

    score: float
    ties: float

    def selects(self, scores: FloatArray, tile: Tile, tie_breaker: RandomBits) -> npt.NDArray[np.bool_]:
        """Whether each entry of a tile is selected."""
        rounded = scores.astype(np.float32, copy=False)
        if self.ties == 1.0:
            return np.asarray(rounded >= self.score)
        selected = np.asarray(rounded > self.score)
        tied = rounded == self.score
        if tied.any():
            selected |= tied & (tie_breaker.at(tile) < self.ties * 2.0**32)
        return selected


def cut_at(total: Callable[[Callable[[FloatArray], Counts]], Counts], share: float) -> Cut:
    """The cut that selects the round(share·N) largest of N scores, in two readings and 512 KiB of memory.

    The score is exact; scores are compared as float32. What is selected of equal scores is right on average.

    Args:
        total: adds up what its argument counts in every tile of the scores.
        share: in [0, 1].
    """

    def upper(scores: FloatArray) -> Counts:
        return np.bincount((_keys(scores) >> 16).ravel(), minlength=_DIGIT)

    def lower(scores: FloatArray) -> Counts:
        keys = _keys(scores)
        return np.bincount(keys[keys >> 16 == digit] & (_DIGIT - 1), minlength=_DIGIT)

    counts = total(upper)
    wanted = round(share * int(counts.sum()))
    if wanted == 0:
        return Cut(math.inf, 0.0)
    digit, rest = _digit_of(counts, wanted)
    counts = total(lower)
    last, rest = _digit_of(counts, rest)
    return Cut(_score_of(digit * _DIGIT + last), rest / int(counts[last]))


def _digit_of(counts: Counts, wanted: int) -> tuple[int, int]:
    """The digit of the entry that is `wanted`-th from the top, and its place among those that share the digit."""
    from_top = np.cumsum(counts[::-1])
    index = int(np.searchsorted(from_top, wanted))
    return counts.size - 1 - index, wanted - int(from_top[index] - counts[::-1][index])


def _keys(scores: FloatArray) -> Bits:
    """Whole numbers in the order of the scores as float32; −0 counts as 0."""
    bits = (scores.astype(np.float32) + np.float32(0.0)).view(np.uint32)
    return np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))


def _score_of(key: int) -> float:
    bits = key ^ (1 << 31) if key >> 31 else key ^ 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))
