"""The largest share of scores is selected exactly, however they are cut."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deltamend.methods.largest_share import cut_at
from deltamend.methods.method import Counts
from deltamend.spectrum.blocks import FloatArray


@given(
    arrays(np.float32, st.integers(1, 60), elements=st.floats(-2.0, 2.0, width=32)),
    st.floats(0.0, 1.0),
    st.integers(1, 5),
)
def test_selection_is_exact_however_the_scores_are_cut(scores: FloatArray, share: float, pieces: int) -> None:
    def total(count: Callable[[FloatArray], Counts]) -> Counts:
        return sum((count(part) for part in np.array_split(scores, pieces)), start=np.zeros(1 << 16, np.int64))

    wanted = round(share * scores.size)
    cut = cut_at(total, share)
    if wanted == 0:
        assert cut == (math.inf, 0.0)
    else:
        assert cut.score == float(np.sort(scores)[::-1][wanted - 1])
        assert np.sum(scores > cut.score) + cut.ties * np.sum(scores == cut.score) == pytest.approx(wanted)


def test_selection_takes_infinite_scores() -> None:
    scores = np.array([-np.inf, 1.0, np.inf, -3.0])
    for rank, expected in enumerate([np.inf, 1.0, -3.0, -np.inf], start=1):
        assert cut_at(lambda count: count(scores), rank / 4) == (expected, 1.0)
