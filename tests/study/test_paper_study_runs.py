"""The paper's study from end to end, on tiny models and a handful of items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltamend.evaluation.backend import best_device
from deltamend.study.config import Study
from deltamend.study.records import BaseRecord, CellRecord, base_file, cell_file, read_record
from deltamend.study.run import run_study, study_state
from tests.evaluation.conftest import ARC, XSTEST, write_items
from tests.study.standins import STAND_INS, save_stand_in
from tests.study.test_paper_study import ROWS, STUDY

REPAIRS = ("dg-hard", "dg-hard-bf16", "null-space", "wise-ft-embedding-base", "all-reverted")


def eight(data_set: str) -> list[dict[str, Any]]:
    """The row of a data set eight times over."""
    return [{**ROWS[data_set][0], "id": str(number)} for number in range(8)]


def in_miniature(name: str, folder: Path) -> Study:
    """The study with one stand-in for a model, 8 items for a data set, and files for benchmarks."""
    content = STUDY.model_dump(mode="json")
    source = save_stand_in(name, folder / "base")
    content["models"] = [model | {"source": str(source)} for model in content["models"] if model["name"] == name]
    for target in content["targets"]:
        file = write_items(folder / f"{target['name']}.jsonl", eight(target["train"]["hub"]))
        target |= {"train": {"files": [file.name]}, "test": {"files": [file.name]}, "test_items": 8, "max_tokens": 4}
    prompts = write_items(folder / "prompts.jsonl", eight("databricks/databricks-dolly-15k"))
    content["regimes"][0] |= {"steps": 3, "batch": 4, "warmup": 1}
    content["repairs"] = [repair for repair in content["repairs"] if repair["name"] in REPAIRS]
    content["own_texts"] = {"samples": 3, "tokens": 6}
    content["exam"] = {
        "dtype": "bfloat16",
        "general": content["exam"]["general"] | {"items": {"files": [prompts.name]}, "count": 8, "max_tokens": 4},
        "tasks": [{"name": "arc", "file": write_items(folder / "arc.jsonl", ARC).name}],
        "safety": [
            {
                "name": "safe",
                "task": "xstest_safe",
                "file": write_items(folder / "xstest.jsonl", XSTEST).name,
                "chat": True,
                "max_tokens": 2,
            }
        ],
    }
    return Study.model_validate(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STAND_INS))
def test_one_cell_of_the_study_runs_to_its_end(name: str, tmp_path: Path) -> None:
    study = in_miniature(name, tmp_path)
    cell = study.cells()[0]
    assert study_state(study, tmp_path / "out", tmp_path).problems == ()
    run_study(study, tmp_path / "out", data=tmp_path, workers=1, cells=lambda one: one == cell.name)
    record = read_record(cell_file(tmp_path / "out", cell.name), CellRecord)
    base = read_record(base_file(tmp_path / "out", cell.model.name, cell.target.name, best_device()), BaseRecord)
    assert record is not None
    assert base is not None
    assert record.finetune.steps == 3
    assert set(record.models) == {"finetuned", *REPAIRS}
    reverted, asked = record.models["all-reverted"].evaluation, base.evaluation
    assert {task: [item.score for item in scores.items] for task, scores in reverted.tasks.items()} == {
        task: [item.score for item in asked.tasks[task].items] for task in reverted.tasks
    }
    assert ("safe" in record.models["dg-hard"].evaluation.tasks, "safe" in reverted.tasks) == (True, False)
    assert not [left for left in (tmp_path / "out" / "models").glob(f"{cell.model.name}__*") if left.is_dir()]
