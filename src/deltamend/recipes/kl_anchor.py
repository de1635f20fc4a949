"""An anchor to the base's own predictions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from deltamend.recipes.gradients import add_to_gradient, drawn, gradients_of
from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun

if TYPE_CHECKING:
    import torch


class KlAnchor(Recipe):
    """The loss plus λ·KL(p_base ‖ p) over old texts: the base teaches its descendant what it used to say (self-distillation).

    The divergence is that of Hinton et al. 2015 at temperature 1, from the base's distribution to the trained model's, in nats, as the
    mean over the predictions; it is what practitioners ask trainers for, and has no single paper. λ = 1 and eight texts in each step are ours.
    """

    name: ClassVar[str] = "kl-anchor"
    source: ClassVar[str] = "ours, after arXiv 1503.02531"
    summary: ClassVar[str] = "Keep the base's predictions on old texts by a divergence."
    needs: ClassVar[str] = "old texts, without labels, and the base in memory a second time"
    uses_old: ClassVar[bool] = True
    off: ClassVar[dict[str, Any]] = {"strength": 0.0}

    strength: float = Field(1.0, ge=0.0, description="λ; 0 is plain training.")
    sample: int = Field(8, ge=1, description="Old texts in each step.")

    def begin(self, run: TrainingRun) -> RunningRecipe:
        """Keep a copy of the base; see `Recipe.start`."""
        base = copy.deepcopy(run.model).eval().requires_grad_(False)
        return _Taught(run, base, self.strength, self.sample)


class _Taught(RunningRecipe):
    def __init__(self, run: TrainingRun, base: torch.nn.Module, strength: float, sample: int) -> None:
        self._run, self._base, self._strength, self._sample = run, base, strength, sample

    def after_backward(self, step: int) -> None:
        """Add the gradient of the divergence."""
        import torch

        texts = drawn(self._run.all_old, self._sample, self._run.seed, step)
        with torch.no_grad():
            wanted = self._run.outputs(self._base, texts).log_softmax(-1)
        parameters = self._run.trained()
        said = self._run.outputs(self._run.model, texts).log_softmax(-1)
        divergence = torch.nn.functional.kl_div(said, wanted, log_target=True, reduction="batchmean")
        for name, gradient in gradients_of(divergence, parameters).items():
            add_to_gradient(parameters[name], gradient, self._strength)

    def held(self) -> Sequence[torch.Tensor]:
        """The weights of the base."""
        return list(self._base.parameters())
