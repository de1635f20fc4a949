"""GEM's projection against a solver of quadratic programs, and its constraints; A-GEM's against its formula."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize

from benchmarks.recipes.toy import Example, Network, loss, run_of
from deltamend.recipes.gem import dual_solution
from deltamend.recipes.gradients import held_back
from deltamend.recipes.recipe import TrainingRun
from deltamend.recipes.registry import get_recipe

Matrix = npt.NDArray[np.float64]


def nearest(gradients: Matrix, gradient: Matrix) -> Matrix:
    """The vector nearest to `gradient` without a negative product with any row, by SLSQP on the primal problem."""
    found = minimize(
        lambda x: 0.5 * np.sum((x - gradient) ** 2),
        gradient,
        jac=lambda x: x - gradient,
        constraints=[{"type": "ineq", "fun": lambda x: gradients @ x, "jac": lambda _: gradients}],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    result: Matrix = found.x
    return result


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_the_projection_is_that_of_a_solver_of_quadratic_programs(seed: int, tasks: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = rng.standard_normal((tasks, 7)), rng.standard_normal(7)
    found = new + dual_solution(old @ old.T, old @ new) @ old
    np.testing.assert_allclose(found, nearest(old, new), atol=1e-6)
    assert (old @ found >= -1e-7).all()


def test_gradients_that_depend_on_one_another_are_projected_too() -> None:
    old = np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    new = np.array([-1.0, -3.0, 2.0])
    found = new + dual_solution(old @ old.T, old @ new) @ old
    np.testing.assert_allclose(found, nearest(old, new), atol=1e-5)


def against(model: Network, old: list[Example]) -> list[torch.Tensor]:
    """Give the model a gradient that is against the old examples; return it."""
    loss(model, old).backward()  # type: ignore[no-untyped-call]
    for one in model.parameters():
        assert one.grad is not None
        one.grad = -one.grad + 0.01 * torch.randn(one.shape, generator=torch.Generator().manual_seed(one.numel()))
    return [one.grad.clone() for one in model.parameters() if one.grad is not None]


def flat(tensors: object) -> torch.Tensor:
    return torch.cat([one.flatten().double() for one in tensors])  # type: ignore[attr-defined]


def old_gradient(model: Network, examples: list[Example]) -> torch.Tensor:
    return flat(torch.autograd.grad(loss(model, examples), list(model.parameters())))


def in_groups(run: TrainingRun, *groups: list[Example]) -> TrainingRun:
    return replace(run, old=tuple(tuple(group) for group in groups))


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_no_constraint_is_violated_after_the_step_is_turned(margin: float, model: Network, old: list[Example]) -> None:
    groups = (old[:4], old[4:8], old[8:])
    running = get_recipe("gem", {"margin": margin}).start(in_groups(run_of(model, []), *groups))
    before = flat(against(model, old))
    gradients = torch.stack([old_gradient(model, group) for group in groups])
    assert (gradients @ before < 0).any()
    running.after_backward(0)
    after = flat([one.grad for one in model.parameters()])
    size = gradients.norm(dim=1) * after.norm()
    assert (gradients @ after >= -1e-5 * size).all()


def test_a_gradient_that_violates_nothing_stays(model: Network, old: list[Example]) -> None:
    for recipe in (get_recipe("gem"), get_recipe("a-gem")):
        model.zero_grad()
        running = recipe.start(run_of(model, old))
        loss(model, old).backward()  # type: ignore[no-untyped-call]
        before = flat([one.grad for one in model.parameters()])
        running.after_backward(0)
        assert torch.equal(flat([one.grad for one in model.parameters()]), before)


def test_averaged_gem_takes_away_what_points_against_the_old_gradient(model: Network, old: list[Example]) -> None:
    running = get_recipe("a-gem").start(run_of(model, old))
    before = flat(against(model, old))
    reference = old_gradient(model, old)
    running.after_backward(0)
    after = flat([one.grad for one in model.parameters()])
    torch.testing.assert_close(
        after, before - (before @ reference) / (reference @ reference) * reference, rtol=1e-4, atol=1e-6
    )
    assert abs(float(after @ reference)) < 1e-5 * float(after.norm() * reference.norm())


def test_a_memory_holds_as_many_examples_of_each_task_as_asked(model: Network, old: list[Example]) -> None:
    kept = held_back(in_groups(run_of(model, []), old[:9], old[9:]), 4)
    assert [len(group) for group in kept] == [4, 3]
