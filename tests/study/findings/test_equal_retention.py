"""The primary measure on a made-up study of which the truth is known, and a second computation of it in plain numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study.recompute_equal_retention import compare
from deltamend.report.study_page import results_markdown, write_results
from deltamend.scoring.settings import Settings, make_settings
from deltamend.study.config import Study
from deltamend.study.findings.equal_retention import measure_equal_retention
from deltamend.study.findings.equal_retention_types import EqualRetention
from deltamend.study.findings.results import study_results
from deltamend.study.findings.scored_cells import read_study_cells
from tests.study.made_up import made_up_study, write_made_up

pytestmark = pytest.mark.slow

SETTINGS = make_settings(draws=200)


def _study(**changes: Any) -> Study:
    targets = [
        {"name": name, "train": {"sums": [10, 99]}, "test": {"sums": [10, 99]}} for name in ("one", "two", "three")
    ]
    fields = {"targets": targets, "choosing": {"targets": ["one", "two", "three"], "seeds": [0]}, "measure": {}}
    return made_up_study(**fields | changes)


def _found(study: Study, out: Path, settings: Settings = SETTINGS) -> EqualRetention:
    found = measure_equal_retention(study, read_study_cells(study, out)[0], settings)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_made_up(_study(), folder, items={"target": 200})
    return folder


@pytest.fixture(scope="module")
def found(out: Path) -> EqualRetention:
    return _found(_study(), out)


@pytest.mark.slow
def test_what_stands_above_the_curve_is_told_from_what_lies_on_or_below_it(found: EqualRetention) -> None:
    over = {one.name: one for one in found.repairs if one.group == "confirmation"}
    ours, below = over["ours"].above_straight, over["ties"].above_straight
    assert ours is not None
    assert below is not None
    assert ours.low is not None
    assert below.high is not None
    assert ours.low > 0.0 > below.high
    assert ours.clusters == 3
    assert over["wise-ft-0.5"].above_straight is None
    smooth = over["ours"].above_smooth
    assert smooth is not None
    assert smooth.value < ours.value
    assert over["none"].healing.value == pytest.approx(0.0, abs=1e-9)
    assert over["revert"].retention.value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
def test_a_second_computation_in_plain_numpy_agrees(found: EqualRetention, out: Path) -> None:
    (out / "results").mkdir(exist_ok=True)
    printed = {"equal_retention": found.model_dump(mode="json")}
    (out / "results" / "results.json").write_text(json.dumps(printed))
    count, largest = compare(_study().model_dump(mode="json"), out)
    assert count > 500
    assert largest < 1e-9
    printed["equal_retention"]["cells"][0]["repairs"]["ours"]["above_smooth"] += 0.01
    (out / "results" / "results.json").write_text(json.dumps(printed))
    assert compare(_study().model_dump(mode="json"), out)[1] == pytest.approx(0.01)


def test_strengths_are_chosen_on_the_other_targets(found: EqualRetention) -> None:
    (family,) = [one for one in found.families if (one.family, one.group) == ("wise-ft", "choosing")]
    assert family.chosen == {}
    assert family.above_straight is None
    assert set(family.chosen_by_score) == {
        f"{regime}/{one}" for regime in ("fp32", "bf16") for one in ("one", "two", "three")
    }
    assert set(family.chosen_by_score.values()) <= {"wise-ft-0.35", "wise-ft-0.5", "wise-ft-0.65"}
    (ours,) = [one for one in found.families if (one.family, one.group) == ("magnitude", "confirmation")]
    assert set(ours.chosen.values()) == {"ours"}
    assert ours.area.value > 0.0
    assert ours.at_floor.keys() == {"0.9", "0.95"}


@pytest.mark.slow
def test_a_cell_where_nothing_is_damaged_or_no_skill_is_learnt_is_shown_and_not_counted(tmp_path: Path) -> None:
    study = _study(measure={"at_least": 0.9})
    write_made_up(study, tmp_path)
    found = _found(study, tmp_path)
    assert found.repairs == ()
    assert found.groups == {}
    assert len(found.cells) == len(study.cells())
    assert not any(cell.damaged for cell in found.cells)
    assert all(cell.admitted for cell in found.cells)


def test_forms_of_the_combined_score(found: EqualRetention) -> None:
    for one in found.repairs:
        if one.name == "ours":
            forms = {name: mean.value for name, mean in one.combined.items()}
            assert forms["harmonic"] <= forms["geometric"] <= forms["arithmetic"]


@pytest.mark.slow
def test_a_study_without_a_measure_has_none(out: Path) -> None:
    study = _study(measure=None)
    assert measure_equal_retention(study, read_study_cells(study, out)[0], SETTINGS) is None


@pytest.mark.slow
def test_the_page_says_it_first(out: Path, tmp_path: Path) -> None:
    results = study_results(_study(), out, draws=200)
    page = results_markdown(results, ["equal-retention.svg"])
    measure = page.index("## Healing above the WiSE-FT curve at equal retention")
    assert measure < page.index("## The repairs side by side")
    assert "confirmation (6 cells, 3 targets): ours stands highest over the wise-ft curve" in page
    assert "What every cell taught and damaged" in page
    write_results(results, tmp_path / "results")
    rows = (tmp_path / "results" / "tables" / "equal_retention_cells.csv").read_text().splitlines()
    assert any(row.startswith("tiny/one/fp32/0,True,ours,above_smooth,") for row in rows)
    assert (tmp_path / "results" / "plots" / "equal-retention.svg").exists()
