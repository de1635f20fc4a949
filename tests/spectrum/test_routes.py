"""Which routes are tried."""

from __future__ import annotations

import numpy as np
import pytest

from deltamend.spectrum import routes
from deltamend.spectrum.blocks import FloatArray
from deltamend.spectrum.filter import filter_delta
from deltamend.spectrum.thresholds import GavishDonoho


def test_large_shorter_sides_take_the_band_route(monkeypatch: pytest.MonkeyPatch, delta: FloatArray) -> None:
    monkeypatch.setattr(routes, "_BAND_FROM", 700)
    for source in (delta, np.ascontiguousarray(delta.T)):
        found = filter_delta(source, GavishDonoho())
        assert (found.route, found.rank, found.reason) == ("band-float32", 12, "")
