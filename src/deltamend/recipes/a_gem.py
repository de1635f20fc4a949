"""A-GEM: gradient episodic memory on the average of all old tasks."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from deltamend.recipes.gradients import add_to_gradient, drawn, evaluating, held_back, loss_gradient
from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun


class AGem(Recipe):
    """Averaged GEM: take from the gradient g what points against g_ref, that of some old examples (Chaudhry et al. 2019).

    Where ⟨g, g_ref⟩ < 0, g̃ = g − (⟨g, g_ref⟩/⟨g_ref, g_ref⟩)·g_ref; otherwise g̃ = g. Every step draws its examples from the memories of
    all old tasks together. 256 examples in a step are the authors', for MNIST; 256 in each memory are chosen here.
    """

    name: ClassVar[str] = "a-gem"
    source: ClassVar[str] = "arXiv 1812.00420"
    summary: ClassVar[str] = "Turn a step that would raise the loss on a sample of old examples."
    needs: ClassVar[str] = "old examples, and in every step a gradient over some of them"
    uses_old: ClassVar[bool] = True
    off: ClassVar[dict[str, Any]] = {"memory": 0}

    memory: int = Field(256, ge=0, description="Examples that are kept of each old task; 0 is plain training.")
    sample: int = Field(256, ge=1, description="Examples drawn from the memories in each step.")

    def begin(self, run: TrainingRun) -> RunningRecipe:
        """Keep the memories; see `Recipe.start`."""
        memory = [example for group in held_back(run, self.memory) for example in group]
        return _Turned(run, memory, self.sample)


class _Turned(RunningRecipe):
    def __init__(self, run: TrainingRun, memory: list[Any], sample: int) -> None:
        self._run, self._memory, self._sample = run, memory, sample

    def after_backward(self, step: int) -> None:
        """Project the gradient."""
        parameters = self._run.trained()
        chosen = drawn(self._memory, self._sample, self._run.seed, step)
        with evaluating(self._run.model):
            old = loss_gradient(self._run, chosen, parameters)
        along = sum(
            float((old[name].double() * one.grad.double()).sum())
            for name, one in parameters.items()
            if one.grad is not None
        )
        length = sum(float(one.double().square().sum()) for one in old.values())
        if along < 0:
            for name, one in parameters.items():
                add_to_gradient(one, old[name], -along / length)
