"""A few entries of a matrix of BASE and of its partner in FINETUNED, and how much of the one is found in the other."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltamend.checkpoint.checkpoint_folder import Array, StoredTensor

Values = Callable[[StoredTensor, int, int], Array]
"""Reads the entries [start, stop) of a tensor, counted row by row."""

Floats = np.ndarray[Any, np.dtype[np.float64]]

PLACES, RUN = 8, 512
"""How many places of a matrix are read, and how many entries at each."""
SURE = 4.0
"""So many standard errors of `WeightSample.share` apart, two values count as different."""
_LEAST_ENTRIES = 32


@dataclass(frozen=True)
class WeightSample:
    """Sums over some entries x of W_base and y of W_ft at the same places, one sum a place.

    Attributes:
        count: how many entries.
        base: Σx².
        finetuned: Σy².
        product: Σxy.
        fourth: Σx⁴; with `mixed` and `squares` it gives the error of `share` where sizes differ from entry to entry.
        mixed: Σx³y.
        squares: Σx²y².
    """

    count: Floats
    base: Floats
    finetuned: Floats
    product: Floats
    fourth: Floats
    mixed: Floats
    squares: Floats

    @property
    def share(self) -> float:
        """β of W_ft = β·W_base + something unlike it, by least squares: 1 for a descendant, 0 for an unrelated matrix."""
        return float(self.product.sum() / self.base.sum())

    @property
    def error(self) -> float:
        """The standard error of `share`, by White's estimate, which holds where some entries are much larger than others."""
        return _error(self.share, self.base.sum(), self.fourth.sum(), self.mixed.sum(), self.squares.sum())

    @property
    def correlation(self) -> float:
        """Of the entries, −1 to 1: Σxy / √(Σx²·Σy²); 0 where W_ft is 0."""
        both = float(self.base.sum() * self.finetuned.sum())
        return float(self.product.sum()) / math.sqrt(both) if both > 0.0 else 0.0

    @property
    def distance(self) -> float:
        """‖Δ‖/‖W_base‖ over the entries."""
        squared = self.finetuned.sum() - 2.0 * self.product.sum() + self.base.sum()
        return math.sqrt(max(0.0, float(squared)) / float(self.base.sum()))

    @property
    def unrelated_places(self) -> int:
        """At how many of the places W_ft surely holds less than half of W_base."""
        sums = zip(self.base, self.product, self.fourth, self.mixed, self.squares, strict=True)
        return sum(
            _is_low(product / base, _error(product / base, base, *rest)) for base, product, *rest in sums if base
        )


def sample_of(
    tensors: tuple[StoredTensor, StoredTensor],
    values: tuple[Values, Values],
    rows: tuple[Sequence[int], Sequence[int]] | None = None,
    columns: tuple[int, int] | None = None,
) -> WeightSample | None:
    """Read some entries of two matrices of one width at the same places; which ones follows from the name and the rows.

    Args:
        tensors: of BASE and of FINETUNED, each read as rows of its last dimension.
        values: read the entries of either.
        rows: which rows of BASE belong to which of FINETUNED; None where the first belongs to the first, and so on.
        columns: the first column and the one after the last; None for all.

    Returns:
        None where nothing can be said: there are too few entries, an entry is not finite, or W_base is 0 in all of them.
    """
    width = tensors[0].shape[-1]
    first, last = columns or (0, width)
    count = min(tensor.elements // width for tensor in tensors) if rows is None else len(rows[0])
    if not width or not count or last <= first:
        return None
    key = [zlib.crc32(tensors[1].name.encode("utf-8", "surrogatepass")), int(rows[1][0]) if rows else 0, first]
    random = np.random.default_rng(key)
    height, run = max(1, RUN // (last - first)), min(RUN, last - first)
    starts = np.unique(((np.arange(PLACES) + random.random(PLACES)) * count / PLACES).astype(np.int64))
    sides = np.zeros((2, len(starts), height * run))
    counts = np.zeros(len(starts))
    for place, start in enumerate(starts.tolist()):
        column = first + int(random.integers(0, last - first - run + 1))
        for number, row in enumerate(range(start, min(count, start + height))):
            span = slice(number * run, (number + 1) * run)
            for side in (0, 1):
                entry = (row if rows is None else int(rows[side][row])) * width + column
                sides[side, place, span] = values[side](tensors[side], entry, entry + run)
            counts[place] += run
    if counts.sum() < _LEAST_ENTRIES:
        return None
    return _sums(counts, sides[0], sides[1])


def is_related(samples: Iterable[WeightSample]) -> bool | None:
    """Whether W_ft comes from W_base, by the mean of `WeightSample.share` over some matrices; None where it is unclear."""
    held = list(samples)
    if not held:
        return None
    share = sum(sample.share for sample in held) / len(held)
    error = math.sqrt(sum(sample.error**2 for sample in held)) / len(held)
    if share - SURE * error > 0.25:
        return True
    return False if _is_low(share, error) else None


def _is_low(share: float, error: float) -> bool:
    return share + SURE * error < 0.5


def _sums(counts: Floats, x: Floats, y: Floats) -> WeightSample | None:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found below
        xx, xy, yy = x * x, x * y, y * y
        table = np.array([part.sum(axis=1) for part in (xx, yy, xy, xx * xx, xx * xy, xx * yy)])
    if not np.isfinite(table).all() or not table[0].any():
        return None
    return WeightSample(counts, *table)


def _error(share: float, base: float, fourth: float, mixed: float, squares: float) -> float:
    """√(Σx²r²)/Σx² with r = y − βx."""
    return math.sqrt(max(0.0, squares - 2.0 * share * mixed + share * share * fourth)) / base
