from __future__ import annotations

import pytest

from deltamend.errors import EvaluationError
from deltamend.evaluation.record import TaskScores
from tests.scoring.records import made_up_cell
from tests.scoring.scored_records import change_task, scored


def _with_items(of: TaskScores, start: int) -> dict[str, object]:
    return {"items": of.items[start:]}


def test_other_items_prompts_or_definitions_are_errors_that_name_the_task() -> None:
    records = made_up_cell()
    arc = records["good"].tasks["arc"]
    fewer = {**records, "good": change_task(records["good"], "arc", **_with_items(arc, 3))}
    with pytest.raises(EvaluationError, match=r"task 'arc': base and good do not have the same items"):
        scored(fewer)
    asked = arc.items[0].model_copy(update={"prompt_hash": "other"})
    other = {**records, "good": change_task(records["good"], "arc", items=(asked, *arc.items[1:]))}
    with pytest.raises(EvaluationError, match=r"task 'arc': base and good were asked 1 items with other prompts"):
        scored(other)
    with pytest.raises(EvaluationError, match="task 'arc': version"):
        scored({**records, "good": change_task(records["good"], "arc", version="2")})
    assert "arc: 199 of 200 items are shared" in scored(other, common_items=True).notes[0]


@pytest.mark.slow
def test_a_task_that_is_missing_is_an_error_or_left_out() -> None:
    records = made_up_cell()
    tasks = {name: task for name, task in records["good"].tasks.items() if name != "mmlu"}
    lacking = {**records, "good": records["good"].model_copy(update={"tasks": tasks})}
    with pytest.raises(EvaluationError, match=r"task 'mmlu': good lacks it"):
        scored(lacking)
    found = scored(lacking, common_items=True)
    assert "mmlu" not in [task.name for task in found.benchmarks]
    assert "mmlu: left out, as good lacks it" in found.notes
    with pytest.raises(EvaluationError, match="is the target and not in every record"):
        scored(lacking, target="mmlu", common_items=True)


def test_a_weak_figure_stays_marked_and_text_that_cannot_be_shown_is_refused() -> None:
    records = {name: change_task(of, "mnli", weak="string matching") for name, of in made_up_cell().items()}
    assert next(task for task in scored(records).benchmarks if task.name == "mnli").weak == "string matching"
    hostile = {name: change_task(of, "mnli", weak="\x1b[2J") for name, of in records.items()}
    with pytest.raises(EvaluationError, match="cannot be shown"):
        scored(hostile)
