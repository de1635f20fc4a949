from __future__ import annotations

from pathlib import Path

from deltamend.study.config import Study
from deltamend.study.exam import prepare_exam
from deltamend.study.records import (
    FORM,
    OWN_ANSWERS,
    TARGET,
    TARGET_LIKELIHOOD,
)

Asked = list[str]


def test_a_study_may_have_no_safety_tasks(study: Study, tmp_path: Path, data: Path) -> None:
    without = study.model_copy(update={"exam": study.exam.model_copy(update={"safety": ()})})
    prepared = prepare_exam(
        without, without.targets[0], Path(without.models[0].source), data, tmp_path / "exam" / "sums"
    )
    assert prepared.safety is None
    assert [task.name for task in prepared.suite.tasks] == [TARGET, TARGET_LIKELIHOOD, OWN_ANSWERS, FORM, "arc"]
