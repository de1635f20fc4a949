from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from benchmarks.recipes.toy import Example, Network, loss, run_of, train
from deltamend.recipes.recipe import TrainingRun
from deltamend.recipes.registry import get_recipe
from deltamend.recipes.replay import replayed


@pytest.mark.parametrize("share", [0.05, 0.25, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_the_mix_is_the_asked_share(share: float, batch: int) -> None:
    for steps in (1, 7, 100):
        old = sum(replayed(share, batch, step) for step in range(steps))
        assert abs(old - share * (old + batch * steps)) < 1  # never a whole example off


def test_as_many_old_examples_are_learnt_as_the_share_says(
    model: Network, old: list[Example], new: list[Example]
) -> None:
    seen = {"old": 0, "new": 0}
    known = {id(one) for one in old}

    def counting(own: object, examples: Sequence[Example]) -> torch.Tensor:
        for one in examples:
            seen["old" if id(one) in known else "new"] += 1
        return loss(own, examples)

    run = run_of(model, old, steps=5)
    train(
        TrainingRun(model, 5, run.batch, run.lr, 0, counting, run.outputs, run.old),
        get_recipe("replay", {"share": 0.2, "memory": 7}),
        new,
    )
    assert seen == {"old": 40, "new": 160}


def test_every_example_counts_once(model: Network, old: list[Example], new: list[Example]) -> None:
    """The gradient is that of the mean over new and old examples together."""
    run = run_of(model, old[:8])
    running = get_recipe("replay", {"share": 0.2, "memory": 8}).start(run)
    batch = new[: run.batch]
    loss(model, batch).backward()  # type: ignore[no-untyped-call]
    running.after_backward(0)
    found = [one.grad.clone() for one in model.parameters() if one.grad is not None]
    expected = torch.autograd.grad(loss(model, [*batch, *old[:8]]), list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
