from __future__ import annotations

import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from deltamend.errors import DeltamendError, EvaluationError, OutputError, UsageError
from deltamend.machine.children import fresh_processes
from deltamend.study.base_model import Workplace
from deltamend.study.config import Study
from deltamend.study.records import (
    CellRecord,
    cell_file,
    read_record,
)
from deltamend.study.run import _RunningWork, run_study, study_state
from tests.study.cell_runs import run, scores
from tests.study.conftest import tiny_config

Asked = list[str]


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
    with fresh_processes(1, {}, len, ()) as pool:
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
        with pytest.raises(OutputError, match="another run is working in it"):
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
