from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.scoring.settings import make_settings
from deltamend.study.config import Study
from deltamend.study.findings.result_types import CHOOSING, CONFIRMATION, StudyResults
from deltamend.study.findings.results import study_results
from deltamend.study.findings.scored_cells import half_of, read_study_cells, scores_of_repairs, scores_on_halves
from deltamend.study.repair_config import Repair
from tests.study.findings.results_of_made_up import DRAWS, said
from tests.study.made_up import ALPHAS, write_made_up

pytestmark = pytest.mark.slow


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
