from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from deltamend.errors import EvaluationError
from deltamend.study import exam as exam_module
from deltamend.study.config import Study
from deltamend.study.exam import evaluate_on_exam, prepare_exam
from deltamend.study.exam_config import Exam
from deltamend.study.questions import Question, best_constant, misplaced
from deltamend.study.records import (
    FORM,
    MISPLACED,
    OWN_ANSWERS,
    TARGET,
    TARGET_LIKELIHOOD,
)

Asked = list[str]


def test_a_study_may_have_no_safety_tasks(study: Study, tmp_path: Path, data: Path) -> None:
    without = study.model_copy(update={"exam": study.exam.model_copy(update={"safety": ()})})
    prepared = prepare_exam(
        "tiny", without.exam, without.targets[0], Path(without.models[0].source), data, tmp_path / "exam" / "sums"
    )
    assert prepared.safety is None
    assert [task.name for task in prepared.suite.tasks] == [TARGET, TARGET_LIKELIHOOD, OWN_ANSWERS, FORM, "arc"]


@pytest.mark.slow
def test_an_exam_has_prompts_of_several_sources_and_answers_that_are_known(
    study: Study, tmp_path: Path, data: Path
) -> None:
    more = {
        "general": study.exam.general.model_dump(),
        "more_general": [{"name": "more", "items": {"files": ["general.jsonl"]}, "count": 8, "form": False}],
        "given_answers": [
            {"name": "facts", "items": {"sums": [0, 3]}, "question": "{{a}}+{{b}}", "answer": "{{sum}}", "count": 8},
            {
                "name": "text",
                "items": {"sums": [0, 3]},
                "question": "{{a}}",
                "answer": "{{b}}",
                "chat": False,
                "count": 8,
            },
        ],
    }
    exam = Exam.model_validate(more)
    base = Path(study.models[0].source)
    prepared = prepare_exam("tiny", exam, study.targets[0], base, data, tmp_path / "exam" / "sums")
    assert [task.name for task in prepared.suite.tasks] == [TARGET, TARGET_LIKELIHOOD, *exam.benchmarks]
    assert exam.benchmarks == (OWN_ANSWERS, "own_answers_more", FORM, "facts", "text")
    text = json.loads((tmp_path / "exam" / "sums" / "text.jsonl").read_text().splitlines()[0])
    assert text["answers"] == [f" {text['id'].partition('+')[2]}"]
    asked = evaluate_on_exam(base, prepared, exam, safety=True, form=True)
    assert asked.tasks.keys() == {TARGET, TARGET_LIKELIHOOD, *exam.benchmarks, MISPLACED}
    assert asked.tasks["text"].items[0].prompt_hash != asked.tasks["facts"].items[0].prompt_hash


def test_two_tasks_of_one_name_are_refused(study: Study) -> None:
    twice = [{"name": "form", "items": {"sums": [0, 3]}, "answer": "{{sum}}"}]
    with pytest.raises(ValidationError, match="two tasks are named form"):
        Exam.model_validate({**study.exam.model_dump(), "given_answers": twice})


def test_a_misplaced_answer_is_that_of_another_question_and_none_is_lost() -> None:
    asked = [Question(str(n), f"q{n}", f"a{n % 3}", f"a{n % 3}") for n in range(9)]
    moved = misplaced(asked)
    answers = {one.id: one.answer for one in asked}
    assert sorted(one.answer for one in moved) == sorted(answers.values())
    assert all(one.answer != answers[one.id] for one in moved)
    assert best_constant(asked) == pytest.approx(1 / 3)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"asked": 1}', '{"asked": "x", "answers": {"a": 1}}', "\x00"])
def test_damaged_answers_of_a_base_are_named(tmp_path: Path, content: str) -> None:
    kept = tmp_path / "own_answers.json"
    kept.write_text(content)
    with pytest.raises(
        EvaluationError, match=r"own_answers\.json: is damaged \(.*\); delete it and run the study again"
    ):
        exam_module._kept_answers(kept)
    kept.write_text('{"asked": "x", "answers": {"a": "b"}}')
    found = exam_module._kept_answers(kept)
    assert found is not None
    assert found.answers == {"a": "b"}
