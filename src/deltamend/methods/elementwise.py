"""What methods that work entry by entry share: selection by score, masks, and random bits by position."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from pydantic import AliasChoices, Field, model_validator

from deltamend.errors import FilterError
from deltamend.methods.method import Counts, KeptDelta, Method
from deltamend.spectrum.blocks import Block, FloatArray

_TILE_ELEMENTS = 1 << 18  # temporaries stay in a core's second-level cache


class Tile(NamedTuple):
    """Rows of one block, a view into it: its first entry is (row, column) of the matrix."""

    row: int
    column: int
    values: FloatArray


def tiles(block: Block, shape: tuple[int, int]) -> Iterator[Tile]:
    """Cut a block of a matrix of `shape` into tiles, each of whole rows of the block."""
    height, width = block.values.shape
    # A block is whole rows, or whole columns of a matrix that is not higher than wide; see `Block`.
    row, column = (block.start, 0) if width == shape[1] else (0, block.start)
    step = max(1, _TILE_ELEMENTS // width)
    for first in range(0, height, step):
        yield Tile(row + first, column, block.values[first : first + step])


def tiles_with(other: FloatArray, block: Block, shape: tuple[int, int]) -> Iterator[tuple[Tile, FloatArray]]:
    """The tiles of a block, each with the same rows of an array that has the shape of the block."""
    first = 0
    for tile in tiles(block, shape):
        yield tile, other[first : first + tile.values.shape[0]]
        first += tile.values.shape[0]


def weight_field(default: float | None) -> Any:
    """The parameter λ of a method that multiplies what it keeps; without a default it has to be given."""
    return Field(
        ... if default is None else default,
        ge=-10.0,
        le=10.0,
        validation_alias=AliasChoices("weight", "lambda"),
        description="Factor λ on what is kept; may also be written `lambda`. A value below 0 moves away from the fine-tuned model.",
        examples=[0.5],
    )


class Weighted(Method):
    """A method that multiplies what it keeps by a weight."""

    weight: float = weight_field(1.0)

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and {"weight", "lambda"} <= values.keys():
            raise ValueError(
                "weight and lambda are two names of one factor where there is one fine-tuned model; give one of them"
            )
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
    """|Δ| of a tile.

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
