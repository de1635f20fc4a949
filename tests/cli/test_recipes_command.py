"""`deltamend recipes` and `deltamend recipes show`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from deltamend.recipes.pages import example_command
from deltamend.recipes.registry import all_recipes
from tests.conftest import Printed


def test_all_recipes_are_listed(deltamend_cli: Callable[..., Printed]) -> None:
    listed = deltamend_cli("recipes")
    assert listed.code == 0
    assert all(name in listed.out for name in all_recipes())
    assert [row["name"] for row in json.loads(deltamend_cli("recipes", "--json").out)] == list(all_recipes())


@pytest.mark.parametrize("name", all_recipes())
def test_one_is_shown_with_its_settings(name: str, deltamend_cli: Callable[..., Printed]) -> None:
    shown = deltamend_cli("recipes", "show", name)
    assert shown.code == 0
    recipe = all_recipes()[name]
    assert recipe.source in shown.out
    assert all(field in shown.out for field in recipe.model_fields)
    assert "\\n" not in shown.out  # paragraphs, and no line end shown as such
    assert shown.out.splitlines()[-1] == example_command(recipe)
    assert json.loads(deltamend_cli("recipes", "show", name, "--json").out)["title"] == recipe.__name__


def test_an_unknown_one_is_an_error(deltamend_cli: Callable[..., Printed]) -> None:
    shown = deltamend_cli("recipes", "show", "nothing")
    assert shown.code == 2
    assert "no recipe 'nothing'" in shown.err
