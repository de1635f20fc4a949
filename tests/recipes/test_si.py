"""The path integral on a quadratic, whose loss is known everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.recipes.toy import Example, Network, run_of
from deltamend.recipes.gradients import gradients_of
from deltamend.recipes.recipe import TrainingRun
from deltamend.recipes.registry import get_recipe
from deltamend.recipes.si import path_integral


def test_the_path_integral_sums_to_the_loss_it_explains_on_a_quadratic() -> None:
    curvature = torch.tensor([4.0, 1.0, 0.25, 0.0])
    start = torch.tensor([1.0, -2.0, 3.0, 5.0])
    point = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([point], lr=1e-3)

    def loss(_step: int = 0) -> torch.Tensor:
        return 0.5 * (curvature * point.square()).sum()

    before = loss().item()
    found = path_integral({"point": point}, lambda _: gradients_of(loss(), {"point": point}), optimizer, 1000)["point"]
    assert abs(float(found.sum()) - (before - loss().item())) < 0.005 * before
    own = 0.5 * curvature * (start.square() - point.detach().square())  # of each entry by itself, as it is separable
    torch.testing.assert_close(found, own, rtol=0.01, atol=1e-6)
    assert float(found[3]) == 0.0


def test_the_importance_is_that_of_the_formula_and_the_weights_go_back() -> None:
    point = torch.nn.Linear(3, 1, bias=False)
    start = point.weight.detach().clone()
    recipe = get_recipe("si", {"strength": 2.0, "damping": 0.5, "path_steps": 4})

    def loss(_model: object, _examples: object) -> torch.Tensor:
        return (point.weight - 1.0).square().sum()

    run = TrainingRun(point, 4, 2, 0.01, 0, loss, loss, old=((1, 2, 3),))
    running = recipe.start(run)
    assert torch.equal(point.weight, start)

    copied = torch.nn.Linear(3, 1, bias=False)
    copied.weight.data.copy_(start)
    optimizer = torch.optim.AdamW(copied.parameters(), lr=0.01, weight_decay=0.0)
    omega = torch.zeros(1, 3)
    for _ in range(4):
        before = copied.weight.detach().clone()
        gradient = 2 * (before - 1.0)
        copied.weight.grad = gradient.clone()
        optimizer.step()
        omega -= gradient * (copied.weight.detach() - before)
    importance = omega / ((copied.weight.detach() - start).square() + 0.5)
    with torch.no_grad():
        point.weight.add_(0.1)
    running.after_backward(0)
    torch.testing.assert_close(point.weight.grad, 2 * 2.0 * importance * 0.1)


def test_the_path_goes_through_old_examples_only(model: Network, old: list[Example]) -> None:
    seen: list[Example] = []
    run = run_of(model, old)

    def listening(own: object, examples: Sequence[Example]) -> torch.Tensor:
        seen.extend(examples)
        return run.loss(own, examples)

    get_recipe("si", {"path_steps": 2}).start(TrainingRun(model, 3, 4, 1e-3, 0, listening, run.outputs, run.old))
    assert {id(one) for one in seen} <= {id(one) for one in old}
    assert len(seen) == 8
