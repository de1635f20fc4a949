"""GEM: gradient episodic memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deltamend.recipes.gradients import add_to_gradient, evaluating, held_back, loss_gradient
from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun

if TYPE_CHECKING:
    import torch

FloatVector = npt.NDArray[np.float64]
_RIDGE = 1e-10
"""Share of the mean diagonal that is added to the Gram matrix, for gradients that depend on one another."""


class Gem(Recipe):
    """Gradient episodic memory: the step nearest to the gradient that raises the loss of no old task (Lopez-Paz & Ranzato 2017).

    g̃ minimises ‖g̃ − g‖² with ⟨g̃, g_k⟩ ≥ 0 for the gradient g_k of each old task over its memory. It is found by the dual,
    a quadratic program with one unknown for each task. γ is then added to its solution v, which favours the old tasks; the authors' code
    bounds v by γ from below instead. Each group of old examples is one task. γ = 0.5 and 256 examples of each task are the authors',
    for images. Every step takes a gradient over the whole memory.
    """

    name: ClassVar[str] = "gem"
    source: ClassVar[str] = "arXiv 1706.08840"
    summary: ClassVar[str] = "Turn a step that would raise the loss on old examples, by projection."
    needs: ClassVar[str] = "old examples, and in every step a gradient over the memory of each old task"
    uses_old: ClassVar[bool] = True
    off: ClassVar[dict[str, Any]] = {"memory": 0}

    memory: int = Field(256, ge=0, description="Examples that are kept of each old task; 0 is plain training.")
    margin: float = Field(0.5, ge=0.0, description="γ of the paper.")

    def begin(self, run: TrainingRun) -> RunningRecipe:
        """Keep the memories; see `Recipe.start`."""
        return _Projected(run, held_back(run, self.memory), self.margin)


class _Projected(RunningRecipe):
    def __init__(self, run: TrainingRun, memories: tuple[tuple[Any, ...], ...], margin: float) -> None:
        self._run, self._memories, self._margin = run, memories, margin

    def after_backward(self, step: int) -> None:  # noqa: ARG002 - the same in every step
        """Project the gradient."""
        parameters = self._run.trained()
        with evaluating(self._run.model):
            old = [loss_gradient(self._run, memory, parameters) for memory in self._memories if memory]
        new = {name: one.grad for name, one in parameters.items() if one.grad is not None}
        along = np.array([sum(_dot(one[name], new[name]) for name in new) for one in old])
        if not (along < 0).any():
            return
        gram = np.array([[sum(_dot(one[name], other[name]) for name in one) for other in old] for one in old])
        for weight, gradient in zip(dual_solution(gram, along) + self._margin, old, strict=True):
            for name, one in parameters.items():
                add_to_gradient(one, gradient[name], float(weight))


def dual_solution(gram: npt.NDArray[np.float64], along: FloatVector) -> FloatVector:
    """The v ≥ 0 that minimises ½ vᵀ(GGᵀ)v + (Gg)ᵀv, for k old tasks: the dual of Lopez-Paz & Ranzato 2017.

    g + Gᵀv is then the vector nearest to g that has no negative product with a row of G.

    Args:
        gram: GGᵀ, (k, k).
        along: Gg, (k,).
    """
    from scipy.optimize import nnls

    size = float(np.trace(gram)) / len(gram) or 1.0
    lower = np.linalg.cholesky(gram / size + _RIDGE * np.eye(len(gram)))
    # ½‖Lᵀv + L⁻¹(Gg)‖² is the same but for a constant: a problem of least squares with v ≥ 0.
    found: FloatVector = nnls(lower.T, -np.linalg.solve(lower, along / size))[0]
    return found


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() * other.double()).sum())
