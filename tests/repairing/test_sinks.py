from __future__ import annotations

import numpy as np
import pytest

from deltamend.repairing.sinks import PartOfSink
from tests.repairing.array_sink import ArraySink

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("spans", [((1, 4),), ((4, 6), (0, 1))])
def test_whole_rows_of_a_part_go_to_their_places(spans: tuple[tuple[int, int], ...]) -> None:
    whole = ArraySink((6, 4))
    part = PartOfSink(whole, spans, None)
    assert part.dtype == whole.dtype
    part.write_rows(0, VALUES[:1])
    part.write_rows(1, VALUES[1:])
    rows = [row for span in spans for row in range(*span)]
    np.testing.assert_array_equal(whole.array[rows], VALUES)
    assert np.isnan(np.delete(whole.array, rows, axis=0)).all()


@pytest.mark.parametrize("by_columns", [False, True])
def test_a_part_of_some_columns_goes_to_its_places(by_columns: bool) -> None:
    whole = ArraySink((6, 9))
    part = PartOfSink(whole, ((4, 6), (0, 1)), (3, 7))
    if by_columns:
        part.write_columns(0, VALUES[:, :1])
        part.write_columns(1, VALUES[:2, 1:])
        part.write_columns(1, VALUES[2:, 1:], row=2)
    else:
        part.write_rows(0, VALUES)
    np.testing.assert_array_equal(whole.array[[4, 5, 0], 3:7], VALUES)
    assert np.isnan(whole.array).sum() == whole.array.size - VALUES.size


def test_columns_of_a_part_of_whole_rows() -> None:
    whole = ArraySink((5, 4))
    PartOfSink(whole, ((3, 5), (1, 2)), None).write_columns(2, VALUES[:, 2:])
    np.testing.assert_array_equal(whole.array[[3, 4, 1], 2:], VALUES[:, 2:])
    assert np.isnan(whole.array[:, :2]).all()
