"""The intervals hold the truth about as often as they say; benchmarks/results/score/coverage.md has 1,000 studies."""

from __future__ import annotations

import pytest

from benchmarks.score.coverage import SCENARIOS, run

STUDIES = 120


@pytest.mark.slow
def test_in_simulated_studies_the_intervals_hold_the_truth() -> None:
    found = run(SCENARIOS["spread, margin 0.03"], studies=STUDIES, draws=300, seed=1)
    for name in ("healing", "preservation", "retention", "combined", "Δ combined"):
        held = [inside for inside, _ in found["percentile"][name]]
        # Three and a half standard errors of 120 studies below 95%; above it there is no room for as many.
        assert len(held) > STUDIES / 2
        assert 0.88 <= sum(held) / len(held) <= 1.0, name
