"""What methods that work entry by entry share: selection by score, masks, and random bits by position."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import AliasChoices, Field, model_validator

from deltamend.errors import FilterError
from deltamend.methods.method import Counts, KeptDelta, Method
from deltamend.spectrum.blocks import Block, FloatArray

Bits = npt.NDArray[np.uint32]

_PART_ELEMENTS = 1 << 18  # temporaries stay in a core's second-level cache
_DIGIT = 1 << 16  # a float32 key is selected by its upper and then by its lower half
_DRAWS_A_COUNTER = 8  # Philox gives four 64-bit words for each value of its counter


class Part(NamedTuple):
    """Rows of one block, a view into it: its first entry is (row, column) of the matrix."""

    row: int
    column: int
    values: FloatArray


def parts(block: Block, shape: tuple[int, int]) -> Iterator[Part]:
    """Cut a block of a matrix of `shape` into parts of whole rows of the block."""
    height, width = block.values.shape
    # A block is whole rows, or whole columns of a matrix that is not higher than wide; see `Block`.
    row, column = (block.start, 0) if width == shape[1] else (0, block.start)
    step = max(1, _PART_ELEMENTS // width)
    for first in range(0, height, step):
        yield Part(row + first, column, block.values[first : first + step])


def parts_with(other: FloatArray, block: Block, shape: tuple[int, int]) -> Iterator[tuple[Part, FloatArray]]:
    """The same, each with that part of an array of the shape of the block."""
    first = 0
    for part in parts(block, shape):
        yield part, other[first : first + part.values.shape[0]]
        first += part.values.shape[0]


class Weighted(Method):
    """A method that multiplies what it keeps by a weight."""

    weight: float = Field(
        1.0,
        ge=-10.0,
        le=10.0,
        validation_alias=AliasChoices("weight", "lambda"),
        description="Factor λ on what is kept; may be written `lambda`. Below 0 it moves away from the fine-tuned model.",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and {"weight", "lambda"} <= values.keys():
            raise ValueError("weight and lambda are the same number with one fine-tuned model; give one of them")
        return values

    def all_or_nothing(self, kept: float) -> KeptDelta | None:
        """The exact answer where the share `kept` of all entries and the weight leave nothing to compute."""
        if kept == 0.0 or self.weight == 0.0:
            return KeptDelta.reverted("nothing is kept by the parameters")
        if kept == 1.0 and self.weight == 1.0:
            return KeptDelta.identity("everything is kept by the parameters")
        return None


def scale(values: FloatArray, weight: float) -> None:
    """Multiply in place, and leave the values alone for a weight of 1."""
    if weight != 1.0:
        values *= values.dtype.type(weight)


def magnitudes(values: FloatArray) -> FloatArray:
    """|Δ| of a part.

    Raises:
        FilterError: NaN or infinity.
    """
    size = np.abs(values)
    if size.size and not math.isfinite(size.max()):
        raise FilterError("the delta holds NaN or infinity")
    return size


def summed(counts: Iterable[Counts]) -> Counts:
    """The sum of counts of one shape, at least one of them."""
    return reduce(np.add, counts)


class Cut(NamedTuple):
    """Which entries a share of the largest scores is: those above `score`, and the share `ties` of those that equal it.

    A bfloat16 checkpoint has few distinct changes: in a real one, keeping ties together made 33% of a share of 20%.
    Which of them are selected is decided by random bits, and a larger cut selects all that a smaller one does.
    """

    score: float
    ties: float

    def selects(self, scores: FloatArray, part: Part, tie_breaker: RandomBits) -> npt.NDArray[np.bool_]:
        """Whether each entry of a part is selected."""
        rounded = scores.astype(np.float32, copy=False)
        if self.ties == 1.0:
            return np.asarray(rounded >= self.score)
        selected = np.asarray(rounded > self.score)
        tied = rounded == self.score
        if tied.any():
            selected |= tied & (tie_breaker.at(part) < self.ties * 2.0**32)
        return selected


def cut_at(total: Callable[[Callable[[FloatArray], Counts]], Counts], share: float) -> Cut:
    """The cut that selects the round(share·N) largest of N scores, in two readings and 512 KiB of memory.

    The score is exact; scores are compared as float32. What is selected of equal scores is right on average.

    Args:
        total: adds up what its argument counts in every part of the scores.
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

    def at(self, part: Part) -> Bits:
        """The bits of the entries of a part, uint32, in its shape."""
        height, width = part.values.shape
        if width == self._columns:
            return self._run(part.row * width, height * width).reshape(height, width)
        starts = (part.row + row for row in range(height))
        return np.stack([self._run(row * self._columns + part.column, width) for row in starts])

    def _run(self, start: int, count: int) -> Bits:
        skipped = start % _DRAWS_A_COUNTER
        generator = np.random.Philox(key=self._key).advance(start // _DRAWS_A_COUNTER)
        words = generator.random_raw((skipped + count + 1) // 2).astype("<u8", copy=False).view("<u4")
        return words[skipped : skipped + count].astype(np.uint32, copy=False)
