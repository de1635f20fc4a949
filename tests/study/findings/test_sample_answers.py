"""Sample answers: a few for each base and target, by the names of their items."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.report.study_page import results_markdown
from deltamend.study.config import Study
from deltamend.study.findings.results import study_results
from deltamend.study.findings.sample_answers import shown_answers
from deltamend.study.findings.scored_cells import read_study_cells
from deltamend.study.records import TARGET, CellRecord, cell_file, read_record, write_record
from tests.study.made_up import made_up_study, write_made_up

pytestmark = pytest.mark.slow

ANSWER = "It is <b>seven</b> | and\nnothing else, " + "very " * 40


def answered(study: Study, out: Path) -> str:
    """Give the first three answers of the target to the fine-tuned model and one repair of the second cell, and name it."""
    cell = list(study.cells())[1]
    file = cell_file(out, cell.name)
    record = read_record(file, CellRecord)
    assert record is not None
    models = dict(record.models)
    for name in ("finetuned", study.repairs[0].name):
        task = models[name].evaluation.tasks[TARGET]
        items = [one.model_copy(update={"response": ANSWER if n < 3 else None}) for n, one in enumerate(task.items)]
        tasks = models[name].evaluation.tasks | {TARGET: task.model_copy(update={"items": tuple(items)})}
        evaluation = models[name].evaluation.model_copy(update={"tasks": tasks})
        models[name] = models[name].model_copy(update={"evaluation": evaluation})
    write_record(record.model_copy(update={"models": models}), file)
    return cell.name


@pytest.mark.slow
def test_a_cell_whose_answers_were_kept_is_shown_and_others_are_not(tmp_path: Path) -> None:
    study = made_up_study()
    write_made_up(study, tmp_path)
    cells, _ = read_study_cells(study, tmp_path)
    assert list(shown_answers(study, cells)) == []
    name = answered(study, tmp_path)
    cells, _ = read_study_cells(study, tmp_path)
    (found,) = shown_answers(study, cells)
    assert found.cell == name
    assert len(found.asked) == 2
    assert all(one.startswith(f"{TARGET}: ") for one in found.asked)
    assert found.answers == {"finetuned": (ANSWER, ANSWER), study.repairs[0].name: (ANSWER, ANSWER)}


@pytest.mark.slow
def test_the_page_shows_them_shortened_and_escaped(tmp_path: Path) -> None:
    study = made_up_study()
    write_made_up(study, tmp_path)
    assert "What models answered" not in results_markdown(study_results(study, tmp_path, draws=100), [])
    name = answered(study, tmp_path)
    text = results_markdown(study_results(study, tmp_path, draws=100), [])
    assert f"Answers in {name}".replace("_", r"\_") in text
    (row,) = [
        line for line in text.split("## What models answered")[1].splitlines() if line.startswith("| finetuned |")
    ]
    assert "<b>" not in row
    assert len(row) < 300
