from __future__ import annotations

import pytest

import deltamend
from deltamend.errors import UsageError
from tests.scoring.records import made_up_cell
from tests.scoring.scored_records import scored


def test_the_target_may_be_in_records_of_its_own() -> None:
    records = made_up_cell()
    apart = {name: of.model_copy(update={"tasks": {"sums": of.tasks["sums"]}}) for name, of in made_up_cell().items()}
    rest = {
        name: of.model_copy(update={"tasks": {key: own for key, own in of.tasks.items() if key != "sums"}})
        for name, of in records.items()
    }
    assert scored(rest, target_files=apart).methods == scored(records).methods
    with pytest.raises(UsageError, match="target_files: give one for each of base, finetuned, good, poor"):
        scored(rest, target_files={"base": apart["base"]})


def test_only_the_benchmarks_named_are_scored() -> None:
    found = scored(made_up_cell(), benchmarks=["arc", "mnli"])
    assert [task.name for task in found.benchmarks] == ["arc", "mnli"]


@pytest.mark.parametrize("name", ["none", "revert", "base", "finetuned", ""])
def test_a_method_may_not_take_the_name_of_another_model(name: str) -> None:
    records = made_up_cell()
    with pytest.raises(UsageError, match="cannot name a repair"):
        deltamend.score(records["base"], records["finetuned"], {name: records["good"]}, target="sums")


def test_another_judge_is_said() -> None:
    records = {name: of.model_copy(update={"settings": {"judge": "strings"}}) for name, of in made_up_cell().items()}
    assert not any("judge" in note for note in scored(records).notes)
    other = {**records, "good": records["good"].model_copy(update={"settings": {"judge": "model"}})}
    assert "good was evaluated with judge model, the base with judge strings" in scored(other).notes


def test_models_with_the_same_weights_are_said() -> None:
    records = made_up_cell()
    hashed = {name: of.model_copy(update={"model_hash": name}) for name, of in records.items()}
    assert not any("same weights" in note for note in scored(hashed).notes)
    same = {**hashed, "good": records["good"].model_copy(update={"model_hash": "finetuned"})}
    assert "finetuned and good have the same weights" in scored(same).notes
