"""The blocks of a delta cover it once, whatever their size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from deltamend.matrices import delta as module
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.delta import BaseBlocks, DeltaBlocks
from deltamend.matrices.views import MemoryMatrix


def sides(shape: tuple[int, int], dtypes: tuple[type, type] = (np.float32, np.float32)) -> tuple[np.ndarray, ...]:
    drawn = np.random.default_rng(0)
    return tuple(drawn.standard_normal(shape).astype(dtype) for dtype in dtypes)


def opened(base: np.ndarray, finetuned: np.ndarray, rows: int | None = None, **options: object) -> DeltaBlocks:
    count = base.shape[0] if rows is None else rows
    return DeltaBlocks(MemoryMatrix(base), MemoryMatrix(finetuned), count, Buffers(), **options)  # type: ignore[arg-type]


def joined(delta: DeltaBlocks, *, by_rows: bool) -> np.ndarray:
    return np.concatenate([block.values.copy() for block in delta], axis=0 if by_rows else 1)


@pytest.mark.parametrize("whole_rows", [False, True])
@pytest.mark.parametrize("block_elements", [1, 20, 33, 1000])
@pytest.mark.parametrize("shape", [(11, 4), (4, 11), (6, 6), (1, 5)])
def test_blocks_join_to_the_difference(shape: tuple[int, int], block_elements: int, whole_rows: bool) -> None:
    base, finetuned = sides(shape)
    by_rows = whole_rows or shape[0] > shape[1]
    delta = opened(base, finetuned, whole_rows=whole_rows, block_elements=block_elements)
    for _ in range(2):  # a delta may be read again
        np.testing.assert_array_equal(joined(delta, by_rows=by_rows), finetuned - base)
    positions = [(block.start, block.stop) for block in delta]
    assert positions[0][0] == 0
    assert positions[-1][1] == (shape[0] if by_rows else shape[1])
    assert all(before[1] == after[0] for before, after in pairwise(positions))
    assert delta.in_one_block == (len(positions) == 1)


@pytest.mark.parametrize("shape", [(11, 4), (4, 11)])
def test_the_base_is_read_in_the_same_blocks(shape: tuple[int, int]) -> None:
    base, finetuned = sides(shape)
    delta = opened(base, finetuned, block_elements=12)
    weights = BaseBlocks(delta)
    assert weights.shape == shape
    found = [weights.read(block.start, block.stop).copy() for block in delta]
    np.testing.assert_array_equal(np.concatenate(found, axis=0 if shape[0] > shape[1] else 1), base)


def test_only_the_first_rows_are_compared() -> None:
    base, finetuned = sides((8, 3))
    np.testing.assert_array_equal(joined(opened(base[:5], finetuned, rows=5), by_rows=True), finetuned[:5] - base[:5])


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((np.float16, np.float32), np.float32),
        ((np.float16, np.float16), np.float32),
        ((np.float64, np.float32), np.float64),
        ((np.float16, np.float64), np.float64),
    ],
)
def test_the_difference_is_formed_in_fp32_or_in_fp64(dtypes: tuple[type, type], expected: type) -> None:
    base, finetuned = sides((5, 3), dtypes)
    delta = opened(base, finetuned)
    assert delta.dtype == expected
    (block,) = delta
    np.testing.assert_array_equal(block.values, finetuned.astype(expected) - base.astype(expected))


def test_a_small_delta_is_held_and_a_large_one_is_not() -> None:
    base, finetuned = sides((6, 4))
    held, large = opened(base, finetuned), opened(base, finetuned, block_elements=8)
    next(iter(held)).values[:] = 0.0
    assert not np.any(next(iter(held)).values)
    next(iter(large)).values[:] = 0.0
    assert np.all(next(iter(large)).values)


def test_zero_means_the_same_bytes() -> None:
    base, finetuned = sides((4, 5))
    assert opened(base, base.copy()).is_zero()
    assert not opened(base, finetuned).is_zero()
    assert not opened(base, base.astype(np.float64)).is_zero()
    damaged = base.copy()
    damaged[2, 2] = np.nan
    assert opened(damaged, damaged.copy()).is_zero()
    changed_later = base.copy()
    changed_later[-1, -1] += 1
    assert opened(base[:3], changed_later, rows=3).is_zero()


def test_the_size_of_blocks_is_that_of_the_moment_when_a_delta_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = sides((6, 4))
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 8)
    assert [(block.start, block.stop) for block in opened(base, finetuned)] == [(0, 2), (2, 4), (4, 6)]


def test_an_overflow_is_infinite_and_no_warning() -> None:
    largest = np.full((2, 3), np.finfo(np.float32).max)
    (block,) = opened(-largest, largest)
    assert np.all(np.isinf(block.values))
