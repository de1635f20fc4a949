from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.errors import EvaluationError, UsageError
from deltamend.study.config import Study
from deltamend.study.findings.result_types import CHOOSING, CONFIRMATION, StudyResults
from deltamend.study.findings.results import study_results
from tests.study.findings.results_of_made_up import DRAWS, combined, ends, estimates, half_done, said
from tests.study.made_up import write_made_up


def test_the_trivial_repairs_score_nothing(results: StudyResults) -> None:
    for name in ("none", "revert"):
        assert ends(combined(results, name)) == (0.0, 0.0, 0.0)
        assert combined(results, name, CHOOSING).value == 0.0


def test_cells_that_chose_do_not_confirm(study: Study, results: StudyResults) -> None:
    choosing, confirming = set(results.groups[CHOOSING]), set(results.groups[CONFIRMATION])
    assert choosing == {cell.name for cell in study.cells() if study.chooses(cell)}
    assert choosing.isdisjoint(confirming)
    assert len(choosing) + len(confirming) == len(study.cells())
    (tried,) = (of for of in results.repairs if of.name == "tried-once")
    assert set(tried.groups) == {CHOOSING}
    assert not any("tried-once" in (of.first, of.second) for of in results.comparisons)


@pytest.mark.slow
def test_with_no_cell_to_confirm_nothing_is_confirmed(study: Study, tmp_path: Path) -> None:
    chosen = {cell.name for cell in study.cells() if study.chooses(cell)}
    results = half_done(study, tmp_path, chosen)
    assert results.headline.startswith(
        f"Nothing is confirmed yet: {len(chosen)} of {len(study.cells())} cells are scored"
    )
    assert "looks better than it is" in results.headline
    assert not results.comparisons
    assert {of.group for of in results.best_strengths} == {CHOOSING}
    assert CONFIRMATION not in results.groups
    for topic in ("best", "curve"):
        assert "nothing is confirmed" in said(results, topic)


@pytest.mark.slow
def test_half_a_study_says_what_is_missing(study: Study, tmp_path: Path) -> None:
    first, second, *others = (cell.name for cell in study.cells() if not study.chooses(cell))
    results = half_done(study, tmp_path, {first, second}, {first: {"ours", "dare"}})
    assert results.headline.startswith(f"Not finished, 2 of {len(study.cells())} cells are scored")
    assert {of.cell for of in results.progress.missing} == {cell.name for cell in study.cells()} - {first, second}
    assert set(others) <= {of.cell for of in results.progress.missing}
    assert results.progress.missing_repairs == {first: ("dare", "ours")}
    (ours,) = (of for of in results.repairs if of.name == "ours")
    assert (ours.cells_done, ours.groups[CONFIRMATION].combined.cells) == (1, 1)
    assert ours.groups[CONFIRMATION].combined.cells_like_these.low is None
    assert any("cells are missing" in note for note in results.notes)
    assert any("some repairs are not done yet" in note for note in results.notes)


def test_no_record_at_all_is_an_error_that_says_what_to_do(study: Study, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="run `deltamend study` first"):
        study_results(study, tmp_path, draws=DRAWS)


def test_a_number_of_draws_that_means_nothing_is_refused(study: Study, records: Path) -> None:
    with pytest.raises(UsageError):
        study_results(study, records, draws=0)


@pytest.mark.slow
def test_repairs_that_are_left_out_of_cells_are_no_missing_ones(study: Study, tmp_path: Path) -> None:
    cell = next(cell for cell in study.cells() if not study.chooses(cell))
    repairs = tuple(
        one.model_copy(update={"not_in": (cell.name,)}) if one.name == "ours" else one for one in study.repairs
    )
    edited = study.model_copy(update={"repairs": repairs})
    write_made_up(edited, tmp_path)
    results = study_results(edited, tmp_path, draws=DRAWS)
    assert results.progress.finished
    assert any("ours is left out of 1 cell that" in note for note in results.notes)
    assert "Not ranked, with figures in fewer cells: ours" in said(results, "best")


@pytest.mark.slow
def test_cells_in_which_next_to_nothing_was_learnt_are_named(study: Study, tmp_path: Path) -> None:
    write_made_up(study, tmp_path, items={"target": 6})
    notes = study_results(study, tmp_path, draws=DRAWS).notes
    assert any(note.startswith("fine-tuning taught fewer than 5 right answers in ") for note in notes)


@pytest.mark.slow
def test_the_same_records_give_the_same_results(study: Study, records: Path, results: StudyResults) -> None:
    assert study_results(study, records, draws=DRAWS) == results
    assert study_results(study, records, draws=DRAWS, seed=1) != results
    assert StudyResults.model_validate_json(results.model_dump_json()) == results


def test_figures_without_a_value_say_why(results: StudyResults) -> None:
    found = list(estimates(results))
    assert len(found) > 500
    assert all(of.reason for of in found if of.value is None)


@pytest.mark.slow
def test_repairs_that_are_made_in_a_few_cells_or_of_few_models_are_told(study: Study, tmp_path: Path) -> None:
    cell = next(cell for cell in study.cells() if not study.chooses(cell))
    repairs = tuple(
        one.model_copy(update={"only_in": (cell.name,)}) if one.name == "ours" else one for one in study.repairs
    )
    kept = tuple(one.name for one in study.repairs)
    models = (study.models[0].model_copy(update={"repairs": kept}), *study.models[1:])
    edited = study.model_copy(update={"repairs": repairs, "models": models})
    write_made_up(edited, tmp_path)
    results = study_results(edited, tmp_path, draws=DRAWS)
    assert results.progress.finished
    assert any(note.startswith("made in a few cells only") and note.endswith(": ours") for note in results.notes)
    of_few = f"of {models[0].name}'s models only these repairs were made: {', '.join(kept)}"
    assert of_few in results.notes
    (ours,) = [one for one in results.repairs if one.name == "ours"]
    assert ours.cells_done == 1
