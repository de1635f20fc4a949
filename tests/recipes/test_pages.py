"""The documentation pages of the recipes, and that their sentences follow from the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltamend.recipes.pages import all_pages, example_command, page, read_record
from deltamend.recipes.registry import RECIPES, recipe_class

ROOT = Path(__file__).parents[2]
RECORD = read_record(ROOT)


def test_the_pages_of_the_documentation_are_up_to_date() -> None:
    for file, text in all_pages(RECORD).items():
        found = (ROOT / "docs" / "recipes" / file).read_text(encoding="utf-8")
        assert found == text, "run python -m deltamend.recipes.pages docs/recipes"


def test_the_record_has_every_recipe() -> None:
    assert list(RECORD["summary"]) == ["base", *(recipe.name for recipe in RECIPES)]
    assert len(RECORD["seeds"]) == 10


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ([0.1, 0.05, 0.15], [-0.1, -0.2, -0.05], "It forgets less than plain training (+10.0, +5.0 to +15.0 points), and learns the new task less well"),
        ([-0.1, -0.2, -0.05], [0.1, 0.05, 0.15], "It forgets more than plain training (-10.0, -20.0 to -5.0 points), and learns the new task better"),
        ([0.1, -0.05, 0.2], [0.0, -0.1, 0.1], "It is not shown to forget less than plain training (+10.0, -5.0 to +20.0 points), and no difference is shown"),
    ],
)  # fmt: skip
def test_a_page_says_whether_the_recipe_forgets_less(old: list[float], new: list[float], sentence: str) -> None:
    rows = RECORD["summary"]
    changed = {**rows, "ewc": {**rows["ewc"], "old_beside_plain": old, "new_beside_plain": new}}
    assert sentence in page(recipe_class("ewc"), {**RECORD, "summary": changed})


def test_a_page_says_what_the_recipe_costs() -> None:
    rows = RECORD["summary"]
    changed = {
        **rows,
        "mas": {**rows["mas"], "time": 1.7, "held": 2.0},
        "lora": {**rows["lora"], "time": 0.9, "held": 0.0},
    }
    record = {**RECORD, "summary": changed}
    said = "There it took 1.7 times the processor time of plain training, getting ready included, and held 2 times the size"
    assert said in page(recipe_class("mas"), record)
    assert (
        "There it took 0.9 times the processor time of plain training, getting ready included, and held nothing besides."
        in page(recipe_class("lora"), record)
    )


def test_the_command_of_a_page_gives_old_examples_where_the_recipe_takes_some() -> None:
    assert example_command(recipe_class("plain")).endswith("--recipe plain")
    assert example_command(recipe_class("gem")).endswith("--recipe gem --old old.jsonl")
