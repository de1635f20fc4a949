from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.study.config import Study
from deltamend.study.findings.result_types import CONFIRMATION, StudyResults
from deltamend.study.findings.results import study_results
from tests.study.findings.results_of_made_up import DRAWS, combined, ends, half_done, said
from tests.study.made_up import write_made_up


def test_the_better_method_comes_out_above(results: StudyResults) -> None:
    order = sorted(
        (of.name for of in results.repairs if CONFIRMATION in of.groups),
        key=lambda name: -(combined(results, name).value or 0.0),
    )
    assert order[0] == "ours"
    assert results.headline.startswith("ours beats every published method")
    assert "hopeless" not in results.headline
    (against,) = (of for of in results.comparisons if (of.first, of.second) == ("ours", "wise-ft-0.5"))
    assert against.these_cells.low is not None
    assert against.these_cells.low > 0
    (reversed_,) = (of for of in results.comparisons if (of.first, of.second) == ("hopeless", "wise-ft-0.5"))
    assert reversed_.these_cells.high is not None
    assert reversed_.these_cells.high < 0


@pytest.mark.slow
def test_repairs_that_are_the_same_differ_by_exactly_nothing(study: Study, tmp_path: Path) -> None:
    write_made_up(study, tmp_path, alike=True)
    results = study_results(study, tmp_path, draws=DRAWS)
    pairs = [*results.comparisons, *results.best_comparisons]
    assert pairs
    for pair in pairs:
        assert ends(pair.these_cells) == ends(pair.cells_like_these) == (0.0, 0.0, 0.0)
        assert pair.p == 1.0
    assert results.headline.startswith("No candidate beats every published method")


def test_every_repair_is_set_against_the_best_published_one_and_that_one_against_nothing(results: StudyResults) -> None:
    best = results.best_published[CONFIRMATION]
    assert best == "wise-ft-0.5"
    for of in results.repairs:
        if CONFIRMATION not in of.groups:
            assert CONFIRMATION not in of.minus_best_published
        elif of.name == best:
            assert not of.minus_best_published.get(CONFIRMATION)
        elif not of.name.endswith("-bf16"):  # which is made in fewer cells
            ours, theirs = combined(results, of.name).value, combined(results, best).value
            assert ours is not None
            assert theirs is not None
            assert of.minus_best_published[CONFIRMATION].these_cells.value == pytest.approx(ours - theirs)


@pytest.mark.slow
def test_a_published_repair_that_is_missing_in_cells_is_not_taken_for_the_best(study: Study, tmp_path: Path) -> None:
    cells = [cell.name for cell in study.cells() if not study.chooses(cell)]
    results = half_done(study, tmp_path, set(cells), {cells[0]: {"wise-ft-0.5"}})
    assert results.best_published[CONFIRMATION] != "wise-ft-0.5"
    assert "Not ranked, with figures in fewer cells: wise-ft-0.5" in said(results, "best")
