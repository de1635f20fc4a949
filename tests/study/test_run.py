from __future__ import annotations

import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from deltamend import repair
from deltamend.errors import DeltamendError, EvaluationError, OutputError, UsageError
from deltamend.evaluation.backend import best_device
from deltamend.study.cell import Workplace, evaluate_base, run_cell
from deltamend.study.config import Study
from deltamend.study.exam import evaluate_on_exam, prepare_exam
from deltamend.study.records import (
    FORM,
    OWN_ANSWERS,
    TARGET,
    TARGET_LIKELIHOOD,
    BaseRecord,
    CellRecord,
    FinetuneFacts,
    base_file,
    cell_file,
    read_record,
)
from deltamend.study.run import _pool, _RunningWork, run_study, study_state
from tests.study.conftest import tiny_config
from tests.study.made_up import made_up_study, write_made_up

Asked = list[str]


@pytest.fixture
def sat(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Names of the models that are asked from here on."""
    names: Asked = []

    def watched(model: Path, *arguments: Any, **options: Any) -> Any:
        names.append(model.name)
        return evaluate_on_exam(model, *arguments, **options)

    monkeypatch.setattr("deltamend.study.cell.evaluate_on_exam", watched)
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


def test_a_finetuned_model_goes_with_its_cell_and_is_made_again_where_its_facts_are_cut_off(
    study: Study, tmp_path: Path, data: Path, sat: Asked
) -> None:
    kept = study.model_copy(update={"keep_finetuned": True})
    run(kept, tmp_path, data)
    (facts,) = (tmp_path / "models").glob("tiny__*.json")
    facts.write_bytes(facts.read_bytes()[:20])
    other = study.repairs[2].model_copy(update={"name": "other", "parameters": {"alpha": 0.3}})
    more = {"repairs": (*study.repairs, other)}
    record = run(kept.model_copy(update=more), tmp_path, data)
    assert sat[4:] == ["other"]
    assert FinetuneFacts.model_validate_json(facts.read_bytes()).model_hash == record.finetune.model_hash
    run(study.model_copy(update=more), tmp_path, data)  # as after a kill between the last record and the deletion
    assert len(sat) == 5
    assert not any((tmp_path / "models").glob("*tiny__*"))


def test_another_way_to_fine_tune_is_another_cell(study: Study, tmp_path: Path, data: Path, sat: Asked) -> None:
    first = run(study, tmp_path, data)
    regime = study.regimes[0].model_copy(update={"lr": 0.02})
    second = run(study.model_copy(update={"regimes": (regime,)}), tmp_path, data)
    assert len(sat) == 8
    assert second.finetune.model_hash != first.finetune.model_hash


def test_the_base_is_asked_once_for_each_target(study: Study, tmp_path: Path, data: Path, sat: Asked) -> None:
    place = Workplace(study, tmp_path, data)
    for _ in range(2):
        evaluate_base(place, study.models[0], study.targets[0], lambda _what, _share: None)
    assert len(sat) == 1
    found = read_record(base_file(tmp_path, "tiny", "sums", best_device()), BaseRecord)
    assert found is not None
    assert "xstest_safe" in found.evaluation.tasks


@pytest.mark.slow
def test_a_whole_study_runs_in_processes_and_its_state_is_told(study: Study, tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    two = study.model_copy(update={"seeds": (0, 1)})
    before = study_state(two, out, data)
    assert (before.left, before.problems) == (9, ())
    heard: list[str] = []
    run_study(two, out, data=data, workers=2, progress=lambda cell, what, _share: heard.append(f"{cell}: {what}"))
    assert study_state(two, out, data).left == 0
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
    state = {cell.cell: cell.done for cell in study_state(study, tmp_path / "out", data).cells}
    assert state == {"tiny/sums/hot/0": 0, "tiny/sums/fp32/0": 4}


@pytest.mark.slow
def test_a_worker_that_is_killed_names_what_was_under_way() -> None:
    with _pool(1) as pool:
        begun = _RunningWork(pool, lambda _cell, _what, _share: None, None)
        for name in ("first", "second", "third"):
            begun.add(name, _is_killed)
        with pytest.raises(DeltamendError, match=r"^first: a worker was killed meanwhile, as happens when"):
            begun.finish()


def _is_killed(_told: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Names of the models that a run prepares from here on; it ends at the first."""
    names: Asked = []

    def ends(_place: Workplace, model: Any) -> Path:
        names.append(model.name)
        raise DeltamendError("enough")

    monkeypatch.setattr("deltamend.study.run.prepare_base", ends)
    return names


def test_a_run_in_a_folder_that_another_holds_touches_nothing(study: Study, tmp_path: Path, prepared: Asked) -> None:
    (tmp_path / ".cell-theirs").mkdir()
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run is at work in it"):
            run_study(study, tmp_path, data=None)
    assert not prepared
    assert (tmp_path / ".cell-theirs").exists()


def test_only_models_of_the_chosen_cells_are_prepared(study: Study, tmp_path: Path, prepared: Asked) -> None:
    other = study.models[0].model_copy(update={"name": "other"})
    two = study.model_copy(update={"models": (*study.models, other)})
    with pytest.raises(DeltamendError, match="enough"):
        run_study(two, tmp_path, data=None, cells=lambda name: name.startswith("other/"))
    assert prepared == ["other"]


@pytest.mark.usefixtures("prepared")
def test_what_a_killed_run_left_is_swept_and_nothing_else(study: Study, tmp_path: Path) -> None:
    ours = [".cell-x1", "models/.tuned-x1.part", "cells/.a.json.xz-x1.part", "exams/tiny/sums/.target.jsonl-x1.part"]
    others = ["models/base-tiny", "cells/a", "exams/tiny/sums/target", ".mine", "notes.part"]
    for name in (*ours, *others):
        (tmp_path / name / "inside").mkdir(parents=True)
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / ".tiny__sums.json.xz.1.part").write_text("a file, as earlier versions left them")
    with pytest.raises(DeltamendError, match="enough"):
        run_study(study, tmp_path, data=None)
    assert not any((tmp_path / name).exists() for name in ours)
    assert all((tmp_path / name / "inside").exists() for name in others)
    assert not list((tmp_path / "bases").iterdir())


def test_a_repair_whose_settings_have_changed_is_left_to_do(tmp_path: Path) -> None:
    study = made_up_study()
    write_made_up(study, tmp_path)
    first, *others = study.repairs
    changed = study.model_copy(update={"repairs": (first.model_copy(update={"out_dtype": "bfloat16"}), *others)})
    assert {cell.models - cell.done for cell in study_state(study, tmp_path, None).cells} == {0}
    assert {cell.models - cell.done for cell in study_state(changed, tmp_path, None).cells} == {1}


def test_what_would_stop_a_run_is_told_beforehand(study: Study, tmp_path: Path) -> None:
    problems = study_state(study, tmp_path, tmp_path).problems
    assert any("general.jsonl" in problem for problem in problems)
    assert any("arc_easy.jsonl" in problem for problem in problems)


def test_missing_trl_is_told_beforehand(
    study: Study, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    assert [
        problem
        for problem in study_state(study, tmp_path, data).problems
        if "pip install 'deltamend[study]'" in problem
    ]


def test_a_damaged_record_and_an_unknown_cell_are_refused(study: Study, tmp_path: Path, data: Path) -> None:
    file = cell_file(tmp_path, "tiny/sums/fp32/0")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not xz")
    with pytest.raises(EvaluationError, match="is damaged"):
        study_state(study, tmp_path, data)
    with pytest.raises(UsageError, match="no cell of that name; there are tiny/sums/fp32/0"):
        run_study(study, tmp_path, data=data, cells=lambda _name: False)


def test_a_study_may_have_no_safety_tasks(study: Study, tmp_path: Path, data: Path) -> None:
    without = study.model_copy(update={"exam": study.exam.model_copy(update={"safety": ()})})
    prepared = prepare_exam(
        without, without.targets[0], Path(without.models[0].source), data, tmp_path / "exam" / "sums"
    )
    assert prepared.safety is None
    assert [task.name for task in prepared.suite.tasks] == [TARGET, TARGET_LIKELIHOOD, OWN_ANSWERS, FORM, "arc"]
