"""Tiny episodic replay."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field

from deltamend.recipes.gradients import add_to_gradient, drawn, held_back, loss_gradient
from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun


class Replay(Recipe):
    """Tiny episodic replay: old examples from a small memory in every step (Chaudhry et al. 2019).

    The authors draw as many old examples as new ones, ten of each, which is a share of one half. The gradient is the mean over both kinds, each example
    counting once. Where the share gives no whole number of old examples, the steps take turns, so that the mix of the whole training is
    the share. The paper's memories hold from one to a few examples of each class, where there are classes; 64 of each old task are chosen here.
    """

    name: ClassVar[str] = "replay"
    source: ClassVar[str] = "arXiv 1902.10486"
    summary: ClassVar[str] = "Mix old examples from a small memory into every step."
    needs: ClassVar[str] = "old examples, and a longer step for each of them"
    uses_old: ClassVar[bool] = True
    off: ClassVar[dict[str, Any]] = {"share": 0.0}

    share: float = Field(
        0.5, ge=0.0, le=0.95, description="Share of the examples in a step that are old; 0 is plain training."
    )
    memory: int = Field(64, ge=1, description="Examples that are kept of each old task.")

    def begin(self, run: TrainingRun) -> RunningRecipe:
        """Keep the memory; see `Recipe.start`."""
        memory = [example for group in held_back(run, self.memory) for example in group]
        return _Mixed(run, memory, self.share)


def replayed(share: float, batch: int, step: int) -> int:
    """The number of old examples in a step, so that after every step the mix is the share but for less than one example.

    Args:
        share: of old examples among all, from 0 to below 1.
        batch: new examples in each step.
        step: its number, from 0.
    """
    each = batch * share / (1 - share)
    return math.floor((step + 1) * each + 1e-9) - math.floor(step * each + 1e-9)


class _Mixed(RunningRecipe):
    def __init__(self, run: TrainingRun, memory: list[Any], share: float) -> None:
        self._run, self._memory, self._share = run, memory, share

    def after_backward(self, step: int) -> None:
        """Replace the gradient by that over new and old examples."""
        wanted = replayed(self._share, self._run.batch, step)
        if not wanted:
            return
        whole, rest = divmod(
            wanted, len(self._memory)
        )  # a memory smaller than the share asks for is gone through again
        chosen = self._memory * whole + drawn(self._memory, rest, self._run.seed, step)
        parameters = self._run.trained()
        old = loss_gradient(self._run, chosen, parameters)
        part = wanted / (self._run.batch + wanted)
        for name, one in parameters.items():
            if one.grad is not None:
                one.grad.mul_(1 - part)
            add_to_gradient(one, old[name], part)
