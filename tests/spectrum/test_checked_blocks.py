"""Arrays and blocks that are no delta are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from deltamend.errors import FilterError
from deltamend.spectrum.blocks import Block
from deltamend.spectrum.filter import filter_delta
from tests.spectrum.filtered import DG_HARD


@pytest.mark.parametrize(
    "delta",
    [np.zeros(3), np.zeros((0, 3)), np.zeros((2, 2), np.float16), np.zeros((2, 2), np.int64), np.zeros((2, 2), ">f8")],
)
def test_arrays_that_are_no_delta_are_refused(delta: Any) -> None:
    with pytest.raises(FilterError, match="expected"):
        filter_delta(delta, DG_HARD)


def test_blocks_that_leave_a_gap_are_refused() -> None:
    @dataclass(frozen=True)
    class Listed:
        blocks: tuple[Block, ...]
        shape: tuple[int, int] = (2, 6)

        def __iter__(self) -> Iterator[Block]:
            return iter(self.blocks)

    ones = np.ones((2, 3))
    for blocks in ((Block(0, 3, ones),), (Block(0, 3, ones), Block(2, 5, ones)), (Block(0, 6, ones),)):
        with pytest.raises(FilterError, match="block"):
            filter_delta(Listed(blocks), DG_HARD)
