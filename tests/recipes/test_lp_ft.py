from __future__ import annotations

import pytest
import torch

from benchmarks.recipes.toy import Example, Network, run_of, train
from deltamend.errors import UsageError
from deltamend.recipes.recipe import TrainingRun
from deltamend.recipes.registry import get_recipe


def test_the_first_phase_moves_nothing_but_the_head(model: Network, new: list[Example]) -> None:
    seen = [{name: one.detach().clone() for name, one in model.named_parameters()}]

    def watch(_step: int) -> None:
        seen.append({name: one.detach().clone() for name, one in model.named_parameters()})

    train(run_of(model, [], steps=6), get_recipe("lp-ft", {"probing": 0.5}), new, watch=watch)
    for step in range(6):
        for name in seen[0]:
            moved = not torch.equal(seen[step][name], seen[step + 1][name])
            assert moved == (step >= 3 or name.startswith("head.")), (step, name)
    assert all(one.requires_grad for one in model.parameters())


def test_a_model_without_a_head_is_refused(model: Network) -> None:
    run = run_of(model, [])
    with pytest.raises(UsageError, match="no head that is trained"):
        get_recipe("lp-ft").start(TrainingRun(model, 3, 4, 1e-3, 0, run.loss, run.outputs))
