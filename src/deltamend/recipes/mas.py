"""MAS: memory-aware synapses."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from deltamend.recipes.importance import AnchoredRecipe, output_sensitivity
from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun


class Mas(Recipe):
    """Memory-aware synapses: the loss plus λ·Σ Ω·(θ − θ_base)² (Aljundi et al. 2018).

    Ω is the mean of |∂‖F(x)‖²/∂θ| over old examples (equation 2, with the squared length of an output of many dimensions): how much the
    base's outputs depend on a parameter. No label is needed. F(x) are the logits, and ‖F(x)‖² is the mean over the predictions of a text,
    which is ours, as the paper is about images. λ = 1 is the authors' for images. The logits of a language model are many and large,
    so Ω is, too, and this λ may hold the base so fast that nothing new is learnt.
    """

    name: ClassVar[str] = "mas"
    source: ClassVar[str] = "arXiv 1711.09601"
    summary: ClassVar[str] = "Hold back weights by how much the base's outputs depend on them."
    needs: ClassVar[str] = "old examples, without labels, and two more copies of the trained weights in memory"
    uses_old: ClassVar[bool] = True
    off: ClassVar[dict[str, Any]] = {"strength": 0.0}

    strength: float = Field(1.0, ge=0.0, description="λ of the paper; 0 is plain training.")

    def begin(self, run: TrainingRun) -> RunningRecipe:
        """Compute the sensitivity of the outputs; see `Recipe.start`."""
        return AnchoredRecipe(run, output_sensitivity(run), 2 * self.strength)
