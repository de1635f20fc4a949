from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pytest

from deltamend.errors import EvaluationError
from deltamend.study.config import Study
from deltamend.study.findings.results import study_results
from deltamend.study.findings.scored_cells import read_study_cells
from deltamend.study.records import BaseRecord, CellRecord, ModelRecord, base_file, cell_file, read_record, write_record
from tests.study.findings.results_of_made_up import DRAWS
from tests.study.made_up import write_made_up

Asked = TypeVar("Asked", BaseRecord, ModelRecord)


@pytest.mark.slow
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


def _on_gpu(record: Asked) -> Asked:
    settings = {**record.evaluation.settings, "device": "cuda"}
    return record.model_copy(update={"evaluation": record.evaluation.model_copy(update={"settings": settings})})


@pytest.mark.slow
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


def test_a_damaged_record_is_named(study: Study, tmp_path: Path) -> None:
    write_made_up(study, tmp_path, only={study.cells()[0].name})
    path = sorted((tmp_path / "cells").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EvaluationError, match=path.name):
        study_results(study, tmp_path, draws=DRAWS)
