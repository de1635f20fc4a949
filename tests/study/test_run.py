from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from deltamend.errors import DeltamendError, EvaluationError, UsageError
from deltamend.evaluation.backend import best_device
from deltamend.repair import repair
from deltamend.study.cell import Workplace, ask_base, run_cell
from deltamend.study.config import Study
from deltamend.study.exam import sit_exam
from deltamend.study.records import (
    FORM,
    OWN_ANSWERS,
    TARGET,
    TARGET_LIKELIHOOD,
    BaseRecord,
    CellRecord,
    base_file,
    cell_file,
    read_record,
)
from deltamend.study.run import look, run_study
from tests.study.conftest import tiny_config

Asked = list[str]


@pytest.fixture
def sat(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Names of the models that are asked from here on."""
    names: Asked = []

    def watched(model: Path, *arguments: Any, **options: Any) -> Any:
        names.append(model.name)
        return sit_exam(model, *arguments, **options)

    monkeypatch.setattr("deltamend.study.cell.sit_exam", watched)
    return names


def run(study: Study, out: Path, data: Path) -> CellRecord:
    place = Workplace(study, out, data)
    (cell,) = study.cells()
    run_cell(place, cell, lambda _what, _share: None)
    record = read_record(cell_file(out, cell.name), CellRecord)
    assert record is not None
    return record


def scores(record: CellRecord) -> dict[str, dict[str, list[float]]]:
    return {
        name: {task: [item.score for item in found.items] for task, found in model.evaluation.tasks.items()}
        for name, model in record.models.items()
    }


def test_a_cell_asks_every_model_and_a_second_run_asks_none(
    study: Study, tmp_path: Path, data: Path, sat: Asked
) -> None:
    record = run(study, tmp_path / "out", data)
    assert list(record.models) == ["finetuned", "dg-hard", "null-space", "wise-ft-0.5"]
    own = {TARGET, TARGET_LIKELIHOOD, OWN_ANSWERS, FORM, "arc"}
    assert record.models["dg-hard"].evaluation.tasks.keys() == own
    assert record.models["wise-ft-0.5"].evaluation.tasks.keys() == own | {"xstest_safe"}
    assert record.finetune.last_loss < record.finetune.first_loss
    facts = record.models["wise-ft-0.5"].facts
    assert facts is not None
    assert facts.kept_energy == pytest.approx(0.25, rel=1e-3)
    assert facts.realised_energy == pytest.approx(0.25, rel=1e-3)
    assert record.models["finetuned"].facts is None
    assert len(sat) == 4
    assert run(study, tmp_path / "out", data) == record
    assert len(sat) == 4
    assert not any((tmp_path / "out" / "models").glob("tiny__*"))
    assert not any((tmp_path / "out").glob(".cell-*"))
    assert scores(run(study, tmp_path / "again", data)) == scores(record)


def test_a_cell_goes_on_where_it_stopped_and_asks_only_what_is_new(
    study: Study, tmp_path: Path, data: Path, sat: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def fails(*_arguments: Any, **_options: Any) -> Any:
        raise DeltamendError("the disk is full")

    monkeypatch.setattr("deltamend.study.cell.repair", fails)
    with pytest.raises(DeltamendError, match="the disk is full"):
        run(study, out, data)
    monkeypatch.setattr("deltamend.study.cell.repair", repair)
    record = run(study, out, data)
    assert [name.partition("__")[0] for name in sat] == ["tiny", "dg-hard", "null-space", "wise-ft-0.5"]
    changed = study.model_copy(
        update={"repairs": (*study.repairs[:2], study.repairs[2].model_copy(update={"parameters": {"alpha": 0.3}}))}
    )
    again = run(changed, out, data)
    assert sat[4:] == ["wise-ft-0.5"]
    assert again.models["dg-hard"] == record.models["dg-hard"]
    assert again.models["wise-ft-0.5"] != record.models["wise-ft-0.5"]
    fewer = study.model_copy(update={"repairs": study.repairs[:1]})
    assert list(run(fewer, out, data).models) == ["finetuned", "dg-hard", "null-space", "wise-ft-0.5"], (
        "scores are never dropped"
    )


def test_another_way_to_fine_tune_is_another_cell(study: Study, tmp_path: Path, data: Path, sat: Asked) -> None:
    first = run(study, tmp_path, data)
    regime = study.regimes[0].model_copy(update={"lr": 0.02})
    second = run(study.model_copy(update={"regimes": (regime,)}), tmp_path, data)
    assert len(sat) == 8
    assert second.finetune.model_hash != first.finetune.model_hash


def test_the_base_is_asked_once_for_each_target(study: Study, tmp_path: Path, data: Path, sat: Asked) -> None:
    place = Workplace(study, tmp_path, data)
    for _ in range(2):
        ask_base(place, study.models[0], study.targets[0], lambda _what, _share: None)
    assert len(sat) == 1
    found = read_record(base_file(tmp_path, "tiny", "sums", best_device()), BaseRecord)
    assert found is not None
    assert "xstest_safe" in found.evaluation.tasks


@pytest.mark.slow
def test_a_whole_study_runs_in_processes_and_its_state_is_told(study: Study, tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    two = study.model_copy(update={"seeds": (0, 1)})
    before = look(two, out, data)
    assert (before.left, before.problems) == (9, ())
    heard: list[str] = []
    run_study(two, out, data=data, workers=2, told=lambda cell, what, _share: heard.append(f"{cell}: {what}"))
    assert look(two, out, data).left == 0
    assert "tiny/sums/fp32/1: done" in heard
    one = read_record(cell_file(out, "tiny/sums/fp32/0"), CellRecord)
    assert one is not None
    assert scores(one) == scores(run(study, tmp_path / "alone", data))


@pytest.mark.slow
def test_a_cell_that_fails_does_not_stop_the_others(tiny_model: Path, tmp_path: Path, data: Path) -> None:
    broken = {"name": "hot", "lr": 1e30, "steps": 12, "batch": 4, "warmup": 0}
    content = tiny_config(tiny_model)
    content["regimes"] = [broken, *content["regimes"]]
    study = Study.model_validate(content)
    with pytest.raises(DeltamendError, match="tiny/sums/hot/0: "):
        run_study(study, tmp_path / "out", data=data, workers=1)
    state = {cell.cell: cell.done for cell in look(study, tmp_path / "out", data).cells}
    assert state == {"tiny/sums/hot/0": 0, "tiny/sums/fp32/0": 4}


def test_what_would_stop_a_run_is_told_beforehand(study: Study, tmp_path: Path) -> None:
    problems = look(study, tmp_path, tmp_path).problems
    assert any("general.jsonl" in problem for problem in problems)
    assert any("arc_easy.jsonl" in problem for problem in problems)


def test_missing_trl_is_told_beforehand(
    study: Study, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    assert [problem for problem in look(study, tmp_path, data).problems if "pip install 'deltamend[study]'" in problem]


def test_a_damaged_record_and_an_unknown_cell_are_refused(study: Study, tmp_path: Path, data: Path) -> None:
    file = cell_file(tmp_path, "tiny/sums/fp32/0")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not xz")
    with pytest.raises(EvaluationError, match="is damaged"):
        look(study, tmp_path, data)
    with pytest.raises(UsageError, match="no cell of that name; there are tiny/sums/fp32/0"):
        run_study(study, tmp_path, data=data, cells=lambda _name: False)
