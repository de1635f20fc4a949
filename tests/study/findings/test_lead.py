"""The lead of one repair over others, on made-up cells whose differences are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltamend.errors import UsageError
from deltamend.scoring.metric import FloatArray
from deltamend.study.config import Study
from deltamend.study.findings.lead import (
    ScoredStudy,
    best_by_regime,
    choosing_cells,
    cluster_leads,
    combined_scores,
    confirmation_cells,
    in_regime,
    lead_over,
    mean_score,
    regimes_of,
    score_study,
    scores_by_retention,
)
from tests.study.made_up import Truth, made_up_study, on_the_curve, truth, write_made_up

pytestmark = pytest.mark.slow

DRAWS = 200


@pytest.fixture(scope="module")
def study() -> Study:
    return made_up_study()


@pytest.fixture(scope="module")
def scored(study: Study, tmp_path_factory: pytest.TempPathFactory) -> ScoredStudy:
    out = tmp_path_factory.mktemp("study")
    write_made_up(study, out)
    return score_study(study, out, DRAWS)


def with_scores(scored: ScoredStudy, scores: Mapping[str, tuple[FloatArray, FloatArray]]) -> ScoredStudy:
    """The same cells with other combined scores: (C,) values and (D, C) draws of some repairs."""
    values, draws = (dict(part) for part in (scored.scores.values, scored.scores.draws))
    values["combined"], draws["combined"] = values["combined"].copy(), draws["combined"].copy()
    for name, (own, drawn) in scores.items():
        column = scored.scores.names.index(name)
        values["combined"][:, column], draws["combined"][:, :, column] = own, drawn
    return replace(scored, scores=replace(scored.scores, values=values, draws=draws))


def combined_of(does: Truth) -> float:
    """The combined score of a repair of which everything is known; nothing of the neutral benchmark is lost."""
    return 4 / (1 / does.healing + 1 / does.retention + 1 / 1.0 + 1 / does.retention) * 100


def test_the_cells_are_parted_as_the_study_says(study: Study, scored: ScoredStudy) -> None:
    assert [of.cell.name for of in choosing_cells(scored).cells] == ["tiny/sums/fp32/0", "tiny/sums/bf16/0"]
    assert len(confirmation_cells(scored).rows) == len(study.cells()) - 2
    assert regimes_of(confirmation_cells(scored)) == ["fp32", "bf16"]
    assert {of.cell.regime.name for of in in_regime(confirmation_cells(scored), "bf16").cells} == {"bf16"}


def test_the_interval_covers_the_lead_that_the_records_were_made_with(study: Study, scored: ScoredStudy) -> None:
    found = lead_over([confirmation_cells(scored)], "ours", "wise-ft-0.5")
    lead = combined_of(truth("ours", study.cells()[0])) - combined_of(on_the_curve(0.5))
    assert found.cells == 6
    for interval in (found.these_cells, found.cells_like_these):
        assert interval.low is not None
        assert interval.high is not None
        assert 0 < interval.low < lead < interval.high


def test_what_two_repairs_have_in_common_drops_out_of_their_difference(scored: ScoredStudy) -> None:
    random = np.random.default_rng(0)
    common, drawn = random.normal(50, 10, 8), random.normal(50, 10, (DRAWS, 8))
    made = with_scores(scored, {"ours": (common + 7, drawn + 7), "ties": (common, drawn)})
    found = lead_over([confirmation_cells(made)], "ours", "ties")
    for interval in (found.these_cells, found.cells_like_these):
        assert (interval.value, interval.low, interval.high) == pytest.approx((7, 7, 7))
    alone = mean_score([confirmation_cells(made)], "ours").these_cells
    assert alone.low is not None
    assert alone.high is not None
    assert alone.high - alone.low > 5


def test_the_interval_for_these_cells_covers_the_true_lead_as_often_as_it_says(scored: ScoredStudy) -> None:
    random = np.random.default_rng(1)
    true, spread, studies, held = 5.0, 4.0, 150, 0
    for _ in range(studies):
        measured = random.normal(true, spread, 8)
        gap = measured, measured + random.normal(0, spread, (DRAWS, 8))
        made = with_scores(scored, {"ours": gap, "ties": (np.zeros(8), np.zeros((DRAWS, 8)))})
        interval = lead_over([confirmation_cells(made)], "ours", "ties").these_cells
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= true <= interval.high
    # Three and a half standard errors of 150 studies below 95 %.
    assert 0.88 <= held / studies < 1


def test_seeds_of_one_cell_are_a_cluster_and_count_once(scored: ScoredStudy) -> None:
    cells = confirmation_cells(scored)
    seeds = np.array([cells.clusters.count(cluster) for cluster in scored.scores.clusters], dtype=np.float64)
    gap = np.where(
        seeds == 2, 10.0, 0.0
    )  # 10 points in the four cells of quiz, of two seeds each; 0 in the two of sums
    made = with_scores(scored, {"ours": (gap, np.tile(gap, (DRAWS, 1))), "ties": (gap * 0, np.zeros((DRAWS, 8)))})
    found = lead_over([confirmation_cells(made)], "ours", "ties")
    assert (found.cells, found.clusters) == (6, 4)
    assert found.these_cells.value == pytest.approx(5)  # over cells it would be 6.7
    assert cluster_leads(confirmation_cells(made), "ours", "ties") == {
        "tiny/quiz/fp32": 10,
        "tiny/quiz/bf16": 10,
        "tiny/sums/fp32": 0,
        "tiny/sums/bf16": 0,
    }


def test_cells_of_two_studies_are_pooled_by_cluster(scored: ScoredStudy) -> None:
    flat = np.ones((DRAWS, 8))
    one, other = (
        with_scores(scored, {"ours": (np.full(8, gap), gap * flat), "ties": (np.zeros(8), 0 * flat)})
        for gap in (2.0, 8.0)
    )
    selected = [in_regime(confirmation_cells(one), "fp32"), confirmation_cells(other)]
    found = lead_over(selected, "ours", "ties")
    # The made-up studies have the same clusters: 3 cells of the first at 2 points fall in with those of the second at 8.
    assert (found.cells, found.clusters) == (9, 4)
    assert found.these_cells.value == pytest.approx((5 + 5 + 8 + 8) / 4)


def test_as_stored_takes_what_was_written_in_bf16_where_there_is_such_a_cell(scored: ScoredStudy) -> None:
    for regime, name in (("fp32", "dg-hard"), ("bf16", "dg-hard-bf16")):
        cells = in_regime(confirmation_cells(scored), regime)
        stored, expected = combined_scores(cells, "dg-hard", "stored"), combined_scores(cells, name)
        np.testing.assert_array_equal(stored.values, expected.values)
        np.testing.assert_array_equal(stored.draws, expected.draws)
    cells = confirmation_cells(scored)  # `ties` was not written in bf16
    np.testing.assert_array_equal(
        combined_scores(cells, "ties", "stored").values, combined_scores(cells, "ties").values
    )


def test_retention_is_measured_in_one_way_on_every_target(scored: ScoredStudy, tmp_path: Path) -> None:
    targets = made_up_study().model_dump(mode="json")["targets"]
    mixed = made_up_study(targets=[targets[0], targets[1] | {"retention": "likelihood"}])
    write_made_up(mixed, tmp_path)
    own, plain = (confirmation_cells(of) for of in (score_study(mixed, tmp_path, DRAWS), scored))
    for retention in ("exact_match", "likelihood"):
        by_one = scores_by_retention(own, "ours", retention)
        by_other = scores_by_retention(plain, "ours", retention)
        np.testing.assert_allclose(by_one.values, by_other.values)
    assert not np.allclose(combined_scores(own, "ours").values, combined_scores(plain, "ours").values)


def test_the_best_of_each_regime_has_the_highest_mean_and_is_there_in_every_cell(scored: ScoredStudy) -> None:
    low, high = np.full(8, 40.0), np.where([of.cell.regime.name == "fp32" for of in scored.cells], 60.0, 20.0)
    missing = np.where([of.cell.regime.name == "fp32" for of in scored.cells], np.nan, 90.0)
    drawn = np.zeros((DRAWS, 8))
    made = with_scores(scored, {"ties": (low, drawn), "dare": (high, drawn), "ours": (missing, drawn)})
    assert best_by_regime(confirmation_cells(made), ("ties", "dare")) == {"fp32": "dare", "bf16": "ties"}
    assert best_by_regime(confirmation_cells(made), ("ties", "dare", "ours")) == {"fp32": "dare", "bf16": "ours"}


def test_a_repair_that_the_study_does_not_have_is_named(scored: ScoredStudy) -> None:
    with pytest.raises(UsageError, match=r"no repair 'tise'; it has dg-hard, ties, dare"):
        mean_score([confirmation_cells(scored)], "tise")


def test_a_study_that_has_not_been_run_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no finished cell of study 'made-up'; run the study first"):
        score_study(study, tmp_path, DRAWS)
