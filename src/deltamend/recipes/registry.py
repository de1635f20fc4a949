"""All recipes by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import ValidationError

from deltamend.errors import UsageError
from deltamend.recipes.a_gem import AGem
from deltamend.recipes.cofitune import CoFiTune
from deltamend.recipes.ewc import Ewc
from deltamend.recipes.gem import Gem
from deltamend.recipes.kl_anchor import KlAnchor
from deltamend.recipes.lora import Lora
from deltamend.recipes.lp_ft import LpFt
from deltamend.recipes.mas import Mas
from deltamend.recipes.plain import Plain
from deltamend.recipes.recipe import Recipe
from deltamend.recipes.replay import Replay
from deltamend.recipes.si import Si
from deltamend.recipes.soft_masks import SoftMasks
from deltamend.records import first_problem

RECIPES: tuple[type[Recipe], ...] = (
    Plain,
    Lora,
    LpFt,
    Ewc,
    Si,
    Mas,
    Gem,
    AGem,
    Replay,
    SoftMasks,
    CoFiTune,
    KlAnchor,
)


def all_recipes() -> Mapping[str, type[Recipe]]:
    """Every recipe by its name, plain training first."""
    return {recipe.name: recipe for recipe in RECIPES}


def recipe_class(name: str) -> type[Recipe]:
    """The class of a recipe; case does not matter, and "_" is read as "-".

    Raises:
        UsageError: there is no recipe of that name.
    """
    known = all_recipes()
    wanted = name.replace("_", "-").lower()
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise UsageError(f"no recipe {name!r}; {hint}")
    return known[wanted]


def get_recipe(name: str, settings: Mapping[str, object] | None = None) -> Recipe:
    """Make a recipe from its name and settings.

    Args:
        name: such as "ewc"; `all_recipes` lists them all.
        settings: values for the recipe's fields; text is converted where a number is asked for.

    Returns:
        The recipe, frozen.

    Raises:
        UsageError: no such recipe, no such setting, or a value out of range.

    Source: `Recipe.source` names the paper of each.
    """
    chosen = recipe_class(name)
    try:
        return chosen.model_validate(dict(settings or {}))
    except ValidationError as error:
        field, message = first_problem(error)
        close = difflib.get_close_matches(field, chosen.model_fields, n=1)
        known = ", ".join(chosen.model_fields) or "none"
        advice = f"did you mean {close[0]!r}? " if close and field not in chosen.model_fields else ""
        raise UsageError(
            f"recipe {chosen.name!r}, setting {field!r}: {message}; {advice}its settings are: {known}"
        ) from error
