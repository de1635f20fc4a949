"""studies/prevention.yaml: it has every recipe, and asks what the ground asks."""

from __future__ import annotations

from pathlib import Path

from deltamend.recipes.registry import all_recipes
from deltamend.study.config import read_study

STUDIES = Path(__file__).parents[2] / "studies"
STUDY = read_study(STUDIES / "prevention.yaml")


def test_targets_and_questions_are_those_of_the_ground() -> None:
    ground = read_study(STUDIES / "ground.yaml")
    assert STUDY.targets == ground.targets
    assert STUDY.exam == ground.exam
    assert STUDY.models == tuple(model for model in ground.models if model.name == "smollm2")
    assert STUDY.measure == ground.measure


def test_every_recipe_trains_as_plain_training_does_but_for_itself() -> None:
    assert [regime.recipe for regime in STUDY.regimes] == list(all_recipes())
    plain = STUDY.regimes[0]
    for regime in STUDY.regimes:
        assert (regime.name, regime.settings) == (regime.recipe, {})
        rest = {"name", "recipe"} | ({"lr"} if regime.recipe == "lora" else set())
        assert regime.model_dump(exclude=rest) == plain.model_dump(exclude=rest)


def test_every_recipe_is_repaired_as_recommended_and_plain_training_in_every_way() -> None:
    for cell in STUDY.cells():
        names = [repair.name for repair in STUDY.repairs_of(cell)]
        assert names == ([one.name for one in STUDY.repairs] if cell.regime.name == "plain" else ["recommended"])
