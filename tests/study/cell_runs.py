"""Runs of one cell, for the tests of cells and of whole studies."""

from __future__ import annotations

from pathlib import Path

from deltamend.study.base_model import Workplace
from deltamend.study.cell import run_cell
from deltamend.study.config import Study
from deltamend.study.records import (
    CellRecord,
    cell_file,
    read_record,
)

Asked = list[str]


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
