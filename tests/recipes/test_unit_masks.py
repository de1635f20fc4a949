from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.recipes.toy import HIDDEN, Example, Network, loss, run_of, train, units
from deltamend.errors import UsageError
from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun, Units
from deltamend.recipes.registry import get_recipe
from deltamend.recipes.unit_masks import Masked, MaskedRecipe, gradient_factors, unit_importance


class Given(Recipe):
    """Masks of importances that the test sets."""

    name = "given"
    source = summary = needs = "ours"
    masked: Masked = "update"

    def begin(self, run: TrainingRun) -> RunningRecipe:
        """Half of the units are as important as can be, the others not at all."""
        scores = (torch.arange(HIDDEN) % 2).float()
        importance = {one.reader: scores for one in run.units}
        return MaskedRecipe(run, gradient_factors(run.trained(), run.units, importance, 1.0), self.masked)


@pytest.mark.parametrize("masked", ["update", "gradient"])
def test_masked_units_move_by_zero_and_all_others_move(masked: Masked, model: Network, new: list[Example]) -> None:
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    # Twice as long as it takes until every unit has been active.
    train(run_of(model, [], steps=6), Given(masked=masked), new)
    for name, one in model.named_parameters():
        change = one.detach() - before[name]
        if ".up." in name:
            assert (change[1::2] == 0).all()
            assert change[::2].flatten(1).any(1).float().mean() > 0.9 if change.ndim > 1 else change[::2].any()
        elif name.endswith("down.weight"):
            assert (change[:, 1::2] == 0).all()
            assert change[:, ::2].any()
        else:
            assert change.any()


def test_the_factor_of_an_update_scales_it_where_that_of_a_gradient_cancels_in_adamw(
    model: Network, new: list[Example]
) -> None:
    class Half(Given):
        def begin(self, run: TrainingRun) -> RunningRecipe:
            return MaskedRecipe(run, {"head.weight": torch.full((10, 48), 0.5)}, self.masked)

    import copy

    moved = {}
    for masked in (None, "update", "gradient"):
        own = copy.deepcopy(model)
        recipe = Given(masked="gradient") if masked is None else Half(masked=masked)
        train(run_of(own, [], steps=1), recipe, new)
        moved[masked] = own.head.weight.detach() - model.head.weight.detach()
    torch.testing.assert_close(moved["update"], 0.5 * moved[None], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved["gradient"], moved[None], rtol=1e-2, atol=1e-5)


def test_importance_lies_between_0_and_1_and_a_unit_that_nothing_reads_has_the_least_gradient(
    model: Network, old: list[Example]
) -> None:
    run = run_of(model, old)
    with torch.no_grad():
        dict(model.named_parameters())["layers.1.down.weight"][:, :5] = 0.0
    found = unit_importance(run, units(), 0.1)
    assert set(found) == {one.reader for one in units()}
    for one in found.values():
        assert one.shape == (HIDDEN,)
        assert ((one >= 0) & (one <= 1)).all()
    # What is not read has the gradient 0, the least there is: all five score alike.
    scores = found["layers.1.down"]
    assert (scores[:5] == scores[0]).all()
    assert len(set(scores.tolist())) > HIDDEN // 2


def test_key_heads_are_as_important_as_the_most_important_head_that_shares_them() -> None:
    parameters = {
        "o": nn.Parameter(torch.zeros(8, 8)),
        "q": nn.Parameter(torch.zeros(8, 8)),
        "k": nn.Parameter(torch.zeros(4, 8)),
        "bias": nn.Parameter(torch.zeros(4)),
    }
    heads = Units(0, "attention", "o", 4, (("o", 1), ("q", 0), ("k", 0), ("bias", 0)))
    factors = gradient_factors(parameters, [heads], {"o": torch.tensor([0.0, 0.5, 1.0, 0.25])}, 1.0)
    assert factors["o"].tolist() == [[1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.75, 0.75]]
    assert factors["q"].flatten().tolist() == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.75, 0.75]
    assert factors["k"].flatten().tolist() == [0.5, 0.5, 0.0, 0.0]
    assert factors["bias"].tolist() == [0.5, 0.5, 0.0, 0.0]


def test_nothing_but_feed_forward_networks_of_the_range_move(
    model: Network, old: list[Example], new: list[Example]
) -> None:
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    train(run_of(model, old, steps=3), get_recipe("cofitune"), new)
    moved = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    # Of four layers, the second is the one above a quarter and up to half of the depth.
    assert moved == {"layers.1.up.weight", "layers.1.up.bias", "layers.1.down.weight"}


def test_a_model_whose_units_are_not_known_is_refused(model: Network, old: list[Example]) -> None:
    run = run_of(model, old)
    unknown = TrainingRun(model, 3, 4, 1e-3, 0, loss, run.outputs, run.old)
    for recipe in (get_recipe("soft-masks"), get_recipe("cofitune")):
        with pytest.raises(UsageError, match="knows no units of this model"):
            recipe.start(unknown)
    with pytest.raises(UsageError, match=r"none of the 4 layers is above 0.9 and up to 0.95"):
        get_recipe("cofitune", {"above": 0.9, "up_to": 0.95}).start(run)
