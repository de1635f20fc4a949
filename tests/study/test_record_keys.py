from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.study.run import study_state
from tests.study.made_up import made_up_study, write_made_up

Asked = list[str]


@pytest.mark.slow
def test_a_repair_whose_settings_have_changed_is_left_to_do(tmp_path: Path) -> None:
    study = made_up_study()
    write_made_up(study, tmp_path)
    first, *others = study.repairs
    changed = study.model_copy(update={"repairs": (first.model_copy(update={"out_dtype": "bfloat16"}), *others)})
    assert {cell.models - cell.done for cell in study_state(study, tmp_path, None).cells} == {0}
    assert {cell.models - cell.done for cell in study_state(changed, tmp_path, None).cells} == {1}
