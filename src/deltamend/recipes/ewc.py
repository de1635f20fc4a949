"""EWC: elastic weight consolidation."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from deltamend.recipes.importance import AnchoredRecipe, fisher_information
from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun


class Ewc(Recipe):
    """Elastic weight consolidation: the loss plus Σ (λ/2)·F·(θ − θ_base)² (Kirkpatrick et al. 2017, equation 3).

    F is the diagonal of the Fisher information of the base over old examples, its labels drawn from the base: the mean of the squared
    gradients of the log-likelihood of a whole example. λ = 400 is chosen here: the right value depends on the model, the examples and the
    learning rate, and the paper has none for language models.
    """

    name: ClassVar[str] = "ewc"
    source: ClassVar[str] = "arXiv 1612.00796"
    summary: ClassVar[str] = "Hold back weights by the Fisher information of the base."
    needs: ClassVar[str] = "old examples, and two more copies of the trained weights in memory"
    uses_old: ClassVar[bool] = True
    off: ClassVar[dict[str, Any]] = {"strength": 0.0}

    strength: float = Field(400.0, ge=0.0, description="λ of the paper; 0 is plain training.")

    def begin(self, run: TrainingRun) -> RunningRecipe:
        """Compute the Fisher information; see `Recipe.start`."""
        return AnchoredRecipe(run, fisher_information(run), self.strength)
