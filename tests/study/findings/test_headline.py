from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.study.config import Study
from deltamend.study.findings.headline import headline_of
from deltamend.study.findings.result_types import StudyResults
from tests.study.findings.results_of_made_up import half_done, said


@pytest.mark.slow
def test_a_published_method_that_was_not_compared_is_not_said_to_be_beaten(study: Study, tmp_path: Path) -> None:
    cells = {cell.name for cell in study.cells() if not study.chooses(cell)}
    results = half_done(study, tmp_path, cells, {key: {"ties"} for key in cells})
    assert "ours beats every published method it shares a cell with" in results.headline
    assert "ours shares no cell with ties." in said(results, "best")
    assert "2 more are not done in any cell yet." in said(results, "best")


@pytest.mark.slow
def test_a_candidate_that_is_missing_in_cells_is_not_the_headline(study: Study, tmp_path: Path) -> None:
    cells = [cell.name for cell in study.cells() if not study.chooses(cell)]
    results = half_done(study, tmp_path, set(cells), {cells[0]: {"ours"}})
    assert "No candidate that is done in all of them beats every published method" in results.headline
    assert "ours" not in results.headline
    assert "Not ranked, with figures in fewer cells: ours" in said(results, "best")


def test_the_headline_says_whether_corrected_ranks_agree(results: StudyResults) -> None:
    pairs = [of for of in results.comparisons if (of.first, of.against) == ("ours", "published")]
    largest = max(of.p_holm for of in pairs)
    assert f"corrected for all comparisons, do not bear it out: p is at most {largest:.2g}." in results.headline
    sure = tuple(of.model_copy(update={"p_holm": 0.01}) for of in results.comparisons)
    assert "corrected for all comparisons, agree: p is at most 0.01." in headline_of(
        results.model_copy(update={"comparisons": sure})
    )
