"""From records to what a study found: a made-up study, of which the truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from deltamend.errors import EvaluationError, UsageError
from deltamend.scoring.result import Estimate
from deltamend.scoring.settings import make_settings
from deltamend.study.config import Repair, Study
from deltamend.study.findings.answers import answer_questions
from deltamend.study.findings.headline import headline_of
from deltamend.study.findings.result_types import CHOOSING, CONFIRMATION, Answer, StudyResults
from deltamend.study.findings.results import study_results
from deltamend.study.findings.scored_cells import half_of, read_study_cells, scores_of_repairs, scores_on_halves
from deltamend.study.records import BaseRecord, CellRecord, ModelRecord, base_file, cell_file, read_record, write_record
from tests.study.made_up import ALPHAS, made_up_study, write_made_up

DRAWS = 200
Asked = TypeVar("Asked", BaseRecord, ModelRecord)


@pytest.fixture(scope="module")
def study() -> Study:
    return made_up_study()


@pytest.fixture(scope="module")
def records(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    write_made_up(study, out)
    return out


@pytest.fixture(scope="module")
def results(study: Study, records: Path) -> StudyResults:
    return study_results(study, records, draws=DRAWS)


def half_done(study: Study, out: Path, only: set[str], without: dict[str, set[str]] | None = None) -> StudyResults:
    write_made_up(study, out, only=only, without=without)
    return study_results(study, out, draws=DRAWS)


def combined(results: StudyResults, name: str, group: str = CONFIRMATION) -> Estimate:
    (found,) = (of for of in results.repairs if of.name == name)
    return found.groups[group].combined.these_cells


def ends(of: Estimate) -> tuple[float | None, float | None, float | None]:
    return of.value, of.low, of.high


def said(results: StudyResults, topic: str) -> str:
    (answer,) = (of for of in results.answers if of.topic == topic)
    return " ".join(answer.sentences)


def estimates(value: object) -> Iterator[Estimate]:
    """Every figure in some results."""
    if isinstance(value, Estimate):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from estimates(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from estimates(inner)
    elif hasattr(value, "__dict__"):
        yield from estimates(vars(value))


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


def test_candidates_are_set_against_published_methods_in_any_dtype_that_is_written_in_every_cell(
    study: Study, tmp_path: Path
) -> None:
    rounded = Repair.model_validate(
        {"name": "dg-hard-rounded", "method": "dg-hard", "role": "dtype", "out_dtype": "bfloat16"}
    )
    study = study.model_copy(update={"repairs": (*study.repairs, rounded)})
    write_made_up(study, tmp_path)
    found = study_results(study, tmp_path, draws=DRAWS).comparisons
    against = {of.second: of.against for of in found if of.first == "ours"}
    assert against["dg-hard"] == against["dg-hard-rounded"] == "published"
    assert "dg-hard-bf16" not in against  # made in one regime


def test_the_trivial_repairs_score_nothing(results: StudyResults) -> None:
    for name in ("none", "revert"):
        assert ends(combined(results, name)) == (0.0, 0.0, 0.0)
        assert combined(results, name, CHOOSING).value == 0.0


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


def test_a_published_repair_that_is_missing_in_cells_is_not_taken_for_the_best(study: Study, tmp_path: Path) -> None:
    cells = [cell.name for cell in study.cells() if not study.chooses(cell)]
    results = half_done(study, tmp_path, set(cells), {cells[0]: {"wise-ft-0.5"}})
    assert results.best_published[CONFIRMATION] != "wise-ft-0.5"
    assert "Not ranked, with figures in fewer cells: wise-ft-0.5" in said(results, "best")


def test_cells_that_chose_do_not_confirm(study: Study, results: StudyResults) -> None:
    choosing, confirming = set(results.groups[CHOOSING]), set(results.groups[CONFIRMATION])
    assert choosing == {cell.name for cell in study.cells() if study.chooses(cell)}
    assert choosing.isdisjoint(confirming)
    assert len(choosing) + len(confirming) == len(study.cells())
    (tried,) = (of for of in results.repairs if of.name == "tried-once")
    assert set(tried.groups) == {CHOOSING}
    assert not any("tried-once" in (of.first, of.second) for of in results.comparisons)


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


def test_a_repair_that_was_made_with_other_settings_is_missing(study: Study, tmp_path: Path) -> None:
    cell = next(cell for cell in study.cells() if not study.chooses(cell))
    write_made_up(study, tmp_path, only={cell.name})
    changes: dict[str, dict[str, Any]] = {
        "ours": {"parameters": {"density": 0.9}},
        "dare": {"safety": True},
        "ties": {"role": "control"},  # which decides nothing about the model
    }
    repairs = tuple(one.model_copy(update=changes.get(one.name, {})) for one in study.repairs)
    edited = study.model_copy(update={"repairs": repairs})
    ((found,), progress) = read_study_cells(edited, tmp_path)
    assert progress.missing_repairs == {cell.name: ("dare", "ours")}
    assert progress.unknown_repairs == {cell.name: ("dare", "ours")}
    assert {"dare", "ours"}.isdisjoint({*found.repairs, *found.record.models})
    notes = study_results(edited, tmp_path, draws=DRAWS).notes
    assert any("or with other settings, so they are not scored: dare, ours" in note for note in notes)


def test_a_published_method_that_was_not_compared_is_not_said_to_be_beaten(study: Study, tmp_path: Path) -> None:
    cells = {cell.name for cell in study.cells() if not study.chooses(cell)}
    results = half_done(study, tmp_path, cells, {key: {"ties"} for key in cells})
    assert "ours beats every published method it shares a cell with" in results.headline
    assert "ours shares no cell with ties." in said(results, "best")
    assert "2 more are not done in any cell yet." in said(results, "best")


def test_a_candidate_that_is_missing_in_cells_is_not_the_headline(study: Study, tmp_path: Path) -> None:
    cells = [cell.name for cell in study.cells() if not study.chooses(cell)]
    results = half_done(study, tmp_path, set(cells), {cells[0]: {"ours"}})
    assert "No candidate that is done in all of them beats every published method" in results.headline
    assert "ours" not in results.headline
    assert "Not ranked, with figures in fewer cells: ours" in said(results, "best")


def test_no_record_at_all_is_an_error_that_says_what_to_do(study: Study, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="run `deltamend study` first"):
        study_results(study, tmp_path, draws=DRAWS)


def test_a_cell_is_held_against_the_base_of_its_device(study: Study, tmp_path: Path) -> None:
    write_made_up(study, tmp_path)
    cell = study.cells()[0]
    path = cell_file(tmp_path, cell.name)
    record = read_record(path, CellRecord)
    assert record is not None
    on_gpu = {name: _on_gpu(model) for name, model in record.models.items()}
    write_record(record.model_copy(update={"models": on_gpu}), path)
    told = [note for note in study_results(study, tmp_path, draws=DRAWS).notes if "device cuda, the base with" in note]
    assert told, "with the CPU's base alone the difference is told"
    base = read_record(base_file(tmp_path, cell.model.name, cell.target.name, "cpu"), BaseRecord)
    assert base is not None
    write_record(
        _on_gpu(base).model_copy(update={"machine": "made up, a GPU"}),
        base_file(tmp_path, cell.model.name, cell.target.name, "cuda"),
    )
    found, _ = read_study_cells(study, tmp_path)
    assert {of.cell.name for of in found if of.base.machine == "made up, a GPU"} == {cell.name}
    assert not [note for note in study_results(study, tmp_path, draws=DRAWS).notes if "device cuda" in note]


def _on_gpu(record: Asked) -> Asked:
    settings = {**record.evaluation.settings, "device": "cuda"}
    return record.model_copy(update={"evaluation": record.evaluation.model_copy(update={"settings": settings})})


def test_a_device_of_any_name_stays_in_its_folder(tmp_path: Path) -> None:
    assert base_file(tmp_path, "m", "t", "../../x").parent == tmp_path / "bases"
    assert base_file(tmp_path, "m", "t", "cuda").name == "m__t__cuda.json.xz"


def test_a_damaged_record_is_named(study: Study, tmp_path: Path) -> None:
    write_made_up(study, tmp_path, only={study.cells()[0].name})
    path = sorted((tmp_path / "cells").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EvaluationError, match=path.name):
        study_results(study, tmp_path, draws=DRAWS)


def test_a_number_of_draws_that_means_nothing_is_refused(study: Study, records: Path) -> None:
    with pytest.raises(UsageError):
        study_results(study, records, draws=0)


def test_strengths_are_chosen_on_other_items_than_they_are_reported_on(study: Study, records: Path) -> None:
    cells, _ = read_study_cells(study, records)
    settings = make_settings(margin="1se", draws=DRAWS, seed=0, confidence=0.95)
    even, odd = scores_on_halves(study, cells, settings)
    whole, _ = scores_of_repairs(study, cells, settings)
    for of in cells:
        first, second = (half_of(of.paired, start) for start in (0, 1))
        tasks = zip((first.target, *first.benchmarks), (second.target, *second.benchmarks), strict=True)
        for one, (left, right) in zip((of.paired.target, *of.paired.benchmarks), tasks, strict=True):
            assert set(left.ids).isdisjoint(right.ids)
            assert sorted((*left.ids, *right.ids)) == sorted(one.ids)
    column = whole.names.index("wise-ft-0.5")
    assert (even["combined"][:, column] != odd.values["combined"][:, column]).any()


def test_the_best_strength_of_the_curve_is_one_near_its_middle(results: StudyResults) -> None:
    for of in results.best_strengths:
        assert of.chosen in of.tried
        if of.family == "wise-ft":
            assert of.chosen in ("wise-ft-0.5", "wise-ft-0.65")
            assert len(of.tried) == len(ALPHAS)
    assert {(of.chosen_on, of.group) for of in results.best_strengths} == {
        ("even items", CONFIRMATION),
        ("choosing cells", CONFIRMATION),
        ("even items", CHOOSING),
    }


def test_strengths_tried_in_the_choosing_cells_only_are_chosen_and_reported_on_halves_of_those(
    results: StudyResults,
) -> None:
    by_group = {
        of.group: of for of in results.best_strengths if of.family == "magnitude" and of.chosen_on == "even items"
    }
    assert by_group[CHOOSING].tried == ("ours", "tried-once")
    assert by_group[CONFIRMATION].tried == ("ours",)
    cells = {group: {pair.cells for pair in results.best_comparisons if pair.group == group} for group in by_group}
    assert cells == {group: {len(results.groups[group])} for group in by_group}
    assert "In the choosing cells, with every family at the strength" in said(results, "best")


def test_a_family_is_set_against_candidates_in_its_own_role(study: Study, tmp_path: Path) -> None:
    control = Repair.model_validate({"name": "shrunk", "method": "shrink", "role": "control"})
    study = study.model_copy(update={"repairs": (*study.repairs, control)})
    write_made_up(study, tmp_path)
    pairs = study_results(study, tmp_path, draws=DRAWS).best_comparisons
    roles = {pair.second: pair.against for pair in pairs if pair.group == CONFIRMATION}
    assert roles.pop("shrunk") == "control"
    assert set(roles.values()) == {"published"}  # WiSE-FT too, of which most are strengths, and the first is one
    (alone,) = (pair for pair in pairs if (pair.first, pair.second, pair.group) == ("ours", "shrunk", CONFIRMATION))
    assert alone.p_holm == min(1.0, 2 * alone.p), "corrected for two candidates against the one control"


def test_the_curve_is_found_by_its_alphas_whatever_the_vectors_follow(
    study: Study, results: StudyResults, tmp_path: Path
) -> None:
    repairs = [repair.model_dump(mode="json") for repair in study.repairs]
    for repair in repairs:
        if repair["method"] == "wise-ft":
            repair["vectors"] = repair["parameters"]["alpha"]
    embedding = {"name": "base-embedding", "method": "wise-ft", "parameters": {"alpha": 0.4}, "role": "control"}
    repairs.append(embedding | {"rules": [{"kind": "embedding", "method": "revert"}]})
    other = made_up_study(repairs=repairs)
    write_made_up(other, tmp_path)
    found = study_results(other, tmp_path, draws=DRAWS)
    assert found.curve is not None
    assert results.curve is not None
    assert [of.name for of in found.curve.points] == [of.name for of in results.curve.points]
    assert [of.alpha for of in found.curve.points] == [0.0, *ALPHAS, 1.0]
    assert "base-embedding" in {of.name for of in found.curve.heights}
    assert "base-embedding" not in {name for of in found.best_strengths if of.family == "wise-ft" for name in of.tried}


def test_only_what_stands_above_the_curve_is_said_to(results: StudyResults) -> None:
    assert results.curve is not None
    heights = {
        of.name: of.groups[CONFIRMATION].these_cells for of in results.curve.heights if CONFIRMATION in of.groups
    }
    assert (heights["ours"].low or 0.0) > 0
    assert (heights["hopeless"].high or 0.0) < 0
    above = said(results, "curve").split("Not told apart")[0].split("Below it")[0]
    assert "hopeless" not in above
    assert "ties" not in above
    assert "dare" in said(results, "curve").split("Not judged")[1]  # larger than the fine-tuned update itself


def test_dg_hard_heals_where_it_removes_something(results: StudyResults) -> None:
    assert results.dg_hard is not None
    assert all(of.identity == ("/fp32/" in of.cell) for of in results.dg_hard.cells)
    same, others = results.dg_hard.identity.these_cells.value, results.dg_hard.others.these_cells.value
    assert same is not None
    assert others is not None
    assert same < 0.1 < others
    by_name = {of.measure: of for of in results.dg_hard.correlations}
    assert (by_name["energy that DG-Hard keeps"].over_clusters or 0.0) < 0
    assert by_name["energy that DG-Hard keeps"].within.keys() == {"bfloat16", "float32"}


def test_what_only_tells_the_dtypes_apart_is_said_to_tell_little_else(results: StudyResults) -> None:
    assert results.dg_hard is not None
    first, *others = results.dg_hard.correlations
    told: list[str] = []
    two: tuple[dict[str, float], ...] = ({"bfloat16": 0.6, "float32": -0.7}, {"bfloat16": 0.6, "float32": 0.7}, {})
    for within in two:
        seen = {"over_clusters": 0.8, "clusters": 16, "p": 0.001, "within": within}
        mixed = first.model_copy(update=seen)
        dg_hard = results.dg_hard.model_copy(update={"correlations": (mixed, *others)})
        answer = answer_questions(results.model_copy(update={"dg_hard": dg_hard}))
        told.append(" ".join(next(of.sentences for of in answer if of.topic == "dg-hard")))
    apart = "it tells the dtypes apart, and little else (ρ = +0.80 over 16 clusters, p = 0.001; within bfloat16 +0.60; within float32 −0.70)"
    assert apart in told[0]
    assert "goes with more healing (ρ = +0.80 over 16 clusters, p = 0.001; within bfloat16 +0.60" in told[1]
    assert "goes with more healing (ρ = +0.80 over 16 clusters, p = 0.001)." in told[2]


def test_what_writing_costs_is_told_by_regime(results: StudyResults) -> None:
    (pair,) = results.written_differences
    assert (pair.regime, pair.first, pair.second) == ("bf16", "dg-hard-bf16", "dg-hard")
    assert (pair.retention.these_cells.high or 0.0) < 0
    assert "In bf16, dg-hard-bf16 minus dg-hard: retention −0." in said(results, "writing")


def test_refusals_are_told_with_how_weak_they_are(results: StudyResults) -> None:
    text = said(results, "refusals")
    assert (
        "xstest_unsafe, fine-tuned on sums: refused 80% by the base and 30% by the fine-tuned model, measurably changed"
        in text
    )
    assert "a weak judge" in text


def test_where_the_base_refuses_next_to_nothing_nothing_is_said_of_refusals(results: StudyResults) -> None:
    few = [
        of.model_copy(update={"share": of.share.model_copy(update={"value": 1 / of.prompts})})
        if (of.task, of.model) == ("xstest_unsafe", "base")
        else of
        for of in results.safety
    ]
    found = answer_questions(results.model_copy(update={"safety": tuple(few)}))
    text = " ".join(next(of.sentences for of in found if of.topic == "refusals"))
    assert (
        "xstest_unsafe, fine-tuned on sums: refused 1 of 60 times by the base itself, so there is next to nothing"
        in text
    )
    assert "xstest_unsafe, fine-tuned on sums: refused 2" not in text


def test_the_headline_says_whether_corrected_ranks_agree(results: StudyResults) -> None:
    pairs = [of for of in results.comparisons if (of.first, of.against) == ("ours", "published")]
    largest = max(of.p_holm for of in pairs)
    assert f"corrected for all comparisons, do not bear it out: p is at most {largest:.2g}." in results.headline
    sure = tuple(of.model_copy(update={"p_holm": 0.01}) for of in results.comparisons)
    assert "corrected for all comparisons, agree: p is at most 0.01." in headline_of(
        results.model_copy(update={"comparisons": sure})
    )


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


def test_cells_in_which_next_to_nothing_was_learnt_are_named(study: Study, tmp_path: Path) -> None:
    write_made_up(study, tmp_path, items={"target": 6})
    notes = study_results(study, tmp_path, draws=DRAWS).notes
    assert any(note.startswith("fine-tuning taught fewer than 5 right answers in ") for note in notes)


def test_the_same_records_give_the_same_results(study: Study, records: Path, results: StudyResults) -> None:
    assert study_results(study, records, draws=DRAWS) == results
    assert study_results(study, records, draws=DRAWS, seed=1) != results
    assert StudyResults.model_validate_json(results.model_dump_json()) == results


def test_figures_without_a_value_say_why(results: StudyResults) -> None:
    found = list(estimates(results))
    assert len(found) > 500
    assert all(of.reason for of in found if of.value is None)


def test_every_question_has_an_answer(results: StudyResults) -> None:
    assert [of.topic for of in results.answers] == [
        "best",
        "curve",
        "dg-hard",
        "writing",
        "refusals",
        "retention",
    ]
    assert all(isinstance(of, Answer) and of.sentences for of in results.answers)
