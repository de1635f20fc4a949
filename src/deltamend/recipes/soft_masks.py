"""Soft masks on the gradients of important units."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun
from deltamend.recipes.unit_masks import Masked, MaskedRecipe, gradient_factors, unit_importance


class SoftMasks(Recipe):
    """Multiply the updates of a unit's weights by 1 − I, where I is the unit's importance to the base (Ke et al. 2023).

    The paper multiplies the gradients. AdamW divides a gradient by the size of the gradients before it, so a factor that stays the same
    cancels, and only a factor of 0 does anything. The update itself is therefore multiplied here, which is the same under plain gradient
    descent; `masked=gradient` is the paper's letter.

    Units are attention heads and hidden neurons; nothing changes in the forward pass. Importance is computed without labels: by how much
    each unit changes the divergence of two runs of the base on the same old text, each with other units dropped. Only the
    masks of the base's general knowledge are here; the paper's contrastive loss is left out, since it belongs to several domains in a row.
    The paper's two runs differ by the dropout of its model; models of today have none, so units are dropped at their gates, 10 % of them,
    which is chosen here. A hidden neuron's mask holds for its weights on both sides; in the authors' code the second matrix of a
    feed-forward network has masks of its own, by the importance of its outputs.
    """

    name: ClassVar[str] = "soft-masks"
    source: ClassVar[str] = "arXiv 2302.03241"
    summary: ClassVar[str] = "Slow down the units that matter to the base."
    needs: ClassVar[str] = "old examples, without labels, and layers whose units are known"
    uses_old: ClassVar[bool] = True
    full_only: ClassVar[bool] = True
    off: ClassVar[dict[str, Any]] = {"strength": 0.0}

    strength: float = Field(
        1.0, ge=0.0, le=1.0, description="Factor of the importance; 1 is the paper's, 0 plain training."
    )
    masked: Masked = Field(
        "update", description="What is multiplied by 1 − I: the change of a weight in each step, or its gradient."
    )
    dropout: float = Field(0.1, gt=0.0, lt=1.0, description="Share of the units dropped while importance is computed.")

    def begin(self, run: TrainingRun) -> RunningRecipe:
        """Compute the importance of the units; see `Recipe.start`."""
        importance = unit_importance(run, run.units, self.dropout)
        return MaskedRecipe(run, gradient_factors(run.trained(), run.units, importance, self.strength), self.masked)
