from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deltamend.errors import UsageError
from deltamend.recipes.regime import Regime
from deltamend.study.config import Study, read_study
from deltamend.study.local_models import with_local_models
from deltamend.study.repair_config import Repair
from tests.study.conftest import tiny_config

STUDIES = Path(__file__).parents[2] / "studies"


def test_the_small_study_is_the_grid_that_it_says() -> None:
    study = read_study(STUDIES / "smollm2.yaml")
    cells = study.cells()
    assert len(cells) == 48
    assert [cell.name for cell in cells if study.chooses(cell)] == [cell.name for cell in cells[:8]]
    assert {cell.seed for cell in cells} == {0, 1, 2}


def test_a_repair_may_be_for_some_regimes_or_for_choosing_only() -> None:
    study = read_study(STUDIES / "smollm2.yaml")
    named = {cell.name: {repair.name for repair in study.repairs_of(cell)} for cell in study.cells()}
    assert "finetuned-bf16" in named["smollm2/sums/fp32/0"]
    assert "finetuned-bf16" not in named["smollm2/sums/bf16/0"]
    assert "laser" in named["smollm2/sums/fp32/0"]
    assert "laser" not in named["smollm2/sums/fp32/1"]
    assert "null-space-half" in named["smollm2/gsm8k/fp32/1"]
    assert "null-space-half" not in named["smollm2/gsm8k/fp32/0"]


def test_a_rule_may_change_what_goes_by_the_own_activations() -> None:
    rules = [{"filter": "mlp", "parameters": {"share": 0.5}}]
    given: dict[str, Any] = {"name": "x", "method": "null-space", "parameters": {"activations": "own"}}
    decides = Repair.model_validate({**given, "rules": rules}).what_decides()
    assert decides[1] == {"effect": 0.001, "share": 1.0, "ridge": None}
    assert decides[2] == [[{"filter": "mlp", "layers": None, "kind": None}, None, {**decides[1], "share": 0.5}]]
    with pytest.raises(ValidationError, match="does not point to a file"):
        Repair.model_validate({**given, "rules": [{"method": "null-space", "parameters": {"activations": "gone"}}]})


def test_the_fresh_study_asks_what_the_small_one_asked_of_other_targets() -> None:
    small, fresh = (read_study(STUDIES / f"{name}.yaml") for name in ("smollm2", "fresh"))
    assert not {target.name for target in fresh.targets} & {target.name for target in small.targets}
    assert not any(fresh.chooses(cell) for cell in fresh.cells())
    assert fresh.regimes == small.regimes
    assert fresh.models == small.models
    assert (fresh.exam.general, fresh.exam.tasks) == (small.exam.general, small.exam.tasks)
    settings = {repair.name: (repair.method, repair.parameters, repair.vectors) for repair in small.repairs}
    assert all(settings[one.name] == (one.method, one.parameters, one.vectors) for one in fresh.repairs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, "seeds: one occurs twice"),
        ({"choosing": {"targets": ["gone"], "seeds": [0]}}, "choosing: no target 'gone'; there are sums"),
        ({"repairs": [{"name": "x", "method": "gone"}]}, "repairs.0: no method 'gone'"),
        ({"repairs": [{"name": "base", "method": "none"}]}, "repairs.0: base is not the name of a repair"),
        ({"repairs": [{"name": "../x", "method": "none"}]}, "repairs: '../x' is not a name"),
        ({"repairs": [{"name": "x", "method": "none", "regimes": ["gone"]}]}, "repairs.x: no regime 'gone'"),
        ({"repairs": [{"name": "x", "method": "none", "not_in": ["gone"]}]}, "repairs.x: no cell 'gone'"),
        ({"repairs": [{"name": "x", "method": "none"}] * 2}, "repairs: two are named 'x'"),
        ({"more": 1}, "more: "),
    ],
)
def test_a_wrong_field_is_named_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(tiny_config(tmp_path, **changes)))  # which is YAML, without aliases
    with pytest.raises(UsageError) as caught:
        read_study(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_may_say_how_long_it_is_trained(tmp_path: Path) -> None:
    content = tiny_config(tmp_path)
    content["targets"][0]["steps"] = 3
    (cell,) = Study.model_validate(content).cells()
    assert (cell.training.steps, cell.training.batch, cell.regime.steps) == (3, 4, 12)


def test_a_model_may_have_fewer_targets_regimes_and_seeds_and_tasks_of_its_own() -> None:
    study = read_study(STUDIES / "ground.yaml")
    names = [cell.name for cell in study.cells()]
    assert len(names) == len(set(names))
    gemma = [cell for cell in study.cells() if cell.model.name == "gemma3-270m"]
    assert {(cell.target.name, cell.regime.name, cell.seed) for cell in gemma} == {
        (target, regime, 0) for target in ("sums", "clinc150", "snips") for regime in ("fp32", "fp32-as-bf16", "lora")
    }
    run = study.cells_to_run()
    assert {len({cell.target.name for cell in run[start : start + 5]}) for start in range(0, 25, 5)} == {5}
    assert {len({cell.regime.name for cell in run[start : start + 5]}) for start in range(0, 25, 5)} == {5}
    assert {cell.name for cell in run[:25]} == {cell.name for cell in study.cells() if study.chooses(cell)}
    assert {cell.name for cell in run[25:]} == set(study.confirm if isinstance(study.confirm, tuple) else ())


def test_a_model_and_a_cell_may_have_fewer_repairs() -> None:
    study = read_study(STUDIES / "ground.yaml")
    made = {cell.name: [repair.name for repair in study.repairs_of(cell)] for cell in study.cells()}
    dropped = {repair.name: set(repair.only_in) for repair in study.repairs if repair.only_in}
    assert dropped
    for name, cells in dropped.items():
        assert {cell for cell, repairs in made.items() if name in repairs} == cells
    for model in study.models:
        for cell in study.cells():
            if cell.model == model and model.repairs:
                assert set(made[cell.name]) <= set(model.repairs)
    for field in ({"only_in": ("nowhere",)}, {"not_in": ("nowhere",)}):
        one = study.repairs[0].model_copy(update=field)
        with pytest.raises(ValueError, match=r"repairs\.wise-ft-0\.5: no cell 'nowhere'"):
            Study.model_validate(study.model_copy(update={"repairs": (one, *study.repairs[1:])}).model_dump())
    other = study.models[1].model_copy(update={"repairs": ("nothing",)})
    with pytest.raises(ValueError, match=r"models\.gemma3-270m: no repair 'nothing'"):
        Study.model_validate(
            study.model_copy(update={"models": (study.models[0], other, *study.models[2:])}).model_dump()
        )


def test_what_the_ground_chooses_on_is_no_cell_that_confirms() -> None:
    study = read_study(STUDIES / "ground.yaml")
    waiting = [cell for cell in study.cells() if not study.chooses(cell)]
    assert set(study.confirm) <= {cell.name for cell in waiting}  # type: ignore[arg-type]
    small = [cell for cell in waiting if cell.model.name == "smollm2"]
    assert {cell.target.name for cell in small if cell.seed == 0} == {"cmudict", "roman"}
    assert {cell.seed for cell in small} == {0, 1}
    assert len(waiting) - len(small) == sum(cell.model.name != "smollm2" for cell in study.cells())


def test_the_confirmation_cells_that_are_run_may_be_named(tmp_path: Path) -> None:
    content = tiny_config(tmp_path)
    whole = Study.model_validate(
        {**content, "seeds": [0, 1], "choosing": {"targets": [], "seeds": []}, "confirm": True}
    )
    first, *others = [cell.name for cell in whole.cells_to_run()]
    assert others
    named = Study.model_validate({**whole.model_dump(), "confirm": [first]})
    assert [cell.name for cell in named.planned_cells()] == [first]
    assert len(whole.planned_cells()) == len(whole.cells())
    assert [cell.name for cell in named.cells_to_run()] == [first]
    with pytest.raises(ValueError, match="confirm: no cell 'nowhere'"):
        Study.model_validate({**whole.model_dump(), "confirm": ["nowhere"]})
    elsewhere = {**whole.model_dump(), "choosing": {"targets": [], "seeds": [], "models": ["nothing"]}}
    with pytest.raises(ValueError, match="choosing: no model 'nothing'"):
        Study.model_validate(elsewhere)


def test_a_local_model_keeps_its_name(tmp_path: Path) -> None:
    study = Study.model_validate(tiny_config(tmp_path))
    local = with_local_models(study, [f"tiny={tmp_path}"])
    assert local.models[0].local == str(tmp_path)
    assert local.models[0].source == study.models[0].source
    for wrong, message in (
        (f"gone={tmp_path}", "no model 'gone'; there are tiny"),
        (f"tiny={tmp_path / 'gone'}", "is not there"),
        ("tiny", "the path is not there"),
    ):
        with pytest.raises(UsageError, match=message):
            with_local_models(study, [wrong])


def test_what_is_stored_does_not_decide_what_training_gives_and_old_keys_stay() -> None:
    regime = Regime.model_validate({"name": "a", "lr": 1e-4, "steps": 3})
    assert "compute" not in regime.what_trains()
    other = regime.model_copy(update={"name": "b", "stored": "bfloat16"})
    assert other.what_trains() == regime.what_trains()
    assert (regime.written, other.written) == ("float32", "bfloat16")
    assert regime.model_copy(update={"compute": "float32"}).what_trains() != regime.what_trains()


def test_a_regime_names_its_recipe_and_plain_training_is_what_it_was() -> None:
    plain = Regime.model_validate({"name": "a", "lr": 1e-4, "steps": 3})
    assert not {"recipe", "settings"} & plain.what_trains().keys()
    own = Regime.model_validate({**plain.model_dump(), "recipe": "replay", "settings": {"share": "0.25"}})
    other = Regime.model_validate({**plain.model_dump(), "recipe": "replay"})
    assert own.what_trains() != other.what_trains() != plain.what_trains()
    assert own.what_trains()["recipe"] == ["replay", {"share": 0.25, "memory": 64}]
    for wrong, problem in (
        ({"recipe": "ecw"}, "no recipe 'ecw'; did you mean 'ewc'"),
        ({"recipe": "ewc", "settings": {"share": 1}}, "setting 'share': there is no such field"),
        ({"recipe": "lp-ft", "lora_rank": 4}, "recipe lp-ft: trains the weights themselves"),
        ({"recipe": "lora", "lora_rank": 4}, "recipe lora: has a rank of its own"),
    ):
        with pytest.raises(ValidationError, match=problem):
            Regime.model_validate({**plain.model_dump(), **wrong})
