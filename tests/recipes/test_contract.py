"""What every recipe promises, by a table with one row for each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.recipes.toy import LR, Example, Network, batches, loss, run_of, train, with_adapter
from deltamend.errors import UsageError
from deltamend.recipes.plain import Plain
from deltamend.recipes.registry import all_recipes, get_recipe, recipe_class

SMALL: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora": {},
    "lp-ft": {},
    "ewc": {},
    "si": {"path_steps": 3},
    "mas": {},
    "gem": {"memory": 5},
    "a-gem": {"memory": 8, "sample": 4},
    "replay": {"memory": 5, "share": 0.3},
    "soft-masks": {},
    "cofitune": {},
    "kl-anchor": {"sample": 3},
}
"""Settings with which each recipe runs in milliseconds."""
STEPS = 4
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == "lora" else name for name in SMALL]
"""PEFT takes seconds to import."""


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def trained(name: str, settings: dict[str, Any], model: Network, old: list[Example], new: list[Example]) -> nn.Module:
    recipe = get_recipe(name, settings)
    own = with_adapter(copy.deepcopy(model), recipe.adapter)
    train(run_of(own, old, seed=3, steps=STEPS), recipe, new)
    return own


def test_the_table_has_a_row_for_every_recipe() -> None:
    assert list(SMALL) == list(all_recipes())


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_move_and_stay_finite(name: str, model: Network, old: list[Example], new: list[Example]) -> None:
    found = weights(trained(name, SMALL[name], model, old, new))
    assert all(one.isfinite().all() for one in found.values())
    if name != "lora":
        before = weights(model)
        assert any(not torch.equal(found[one], before[one]) for one in before)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bits(name: str, model: Network, old: list[Example], new: list[Example]) -> None:
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise if name != "lora" else 1)  # an adapter's first weights are PEFT's to draw
        results.append(weights(trained(name, SMALL[name], model, old, new)))
    assert all(torch.equal(results[0][one], results[1][one]) for one in results[0])


@pytest.mark.parametrize("name", [name for name, recipe in all_recipes().items() if recipe.off is not None])
def test_a_recipe_at_strength_0_is_plain_training_to_the_last_bit_and_otherwise_is_not(
    name: str, model: Network, old: list[Example], new: list[Example]
) -> None:
    plain = weights(trained("plain", {}, model, old, new))
    off = recipe_class(name).off or {}
    without = weights(trained(name, {**SMALL[name], **off}, model, old, new))
    assert all(torch.equal(without[one], plain[one]) for one in plain)
    with_it = weights(trained(name, SMALL[name], model, old, new))
    assert any(not torch.equal(with_it[one], plain[one]) for one in plain)


@pytest.mark.parametrize("name", ["ewc", "si", "mas", "soft-masks", "kl-anchor"])
def test_a_strength_of_almost_0_is_almost_plain_training(
    name: str, model: Network, old: list[Example], new: list[Example]
) -> None:
    """So the strength multiplies something, and 0 is no case of its own."""
    plain = weights(trained("plain", {}, model, old, new))
    little = weights(trained(name, {**SMALL[name], "strength": 1e-8}, model, old, new))
    for one in plain:
        torch.testing.assert_close(little[one], plain[one], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_getting_ready_leaves_the_base_as_it_is(name: str, model: Network, old: list[Example]) -> None:
    before = weights(model)
    get_recipe(name, SMALL[name]).start(run_of(model, old, steps=STEPS))
    assert all(torch.equal(one, before[key]) for key, one in model.named_parameters())
    assert all(one.grad is None for one in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_says_what_it_is(name: str) -> None:
    recipe = recipe_class(name)
    assert recipe.summary.endswith(".")
    assert recipe.source
    assert recipe.needs
    assert recipe.__doc__
    assert all(field.description for field in recipe.model_fields.values())
    assert recipe().described() == name


def test_errors_say_what_there_is() -> None:
    with pytest.raises(UsageError, match="no recipe 'ecw'; did you mean 'ewc'"):
        get_recipe("ecw")
    with pytest.raises(UsageError, match="no recipe 'x'; there are plain, lora"):
        get_recipe("x")
    with pytest.raises(UsageError, match="setting 'strenght': there is no such field; did you mean 'strength'"):
        get_recipe("ewc", {"strenght": 1})
    with pytest.raises(UsageError, match="setting 'strength': Input should be greater than or equal to 0"):
        get_recipe("EWC", {"strength": -1})
    with pytest.raises(UsageError, match="setting 'strength': Input should be a finite number"):
        get_recipe("ewc", {"strength": "nan"})


def test_plain_training_does_what_a_loop_without_recipes_does(model: Network, new: list[Example]) -> None:
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=LR, weight_decay=0.0)
    for batch in batches(new, STEPS, 3):
        optimizer.zero_grad()
        loss(by_hand, batch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
    train(run_of(model, [], seed=3, steps=STEPS), Plain(), new)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), by_hand.parameters(), strict=True))
