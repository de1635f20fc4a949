"""CoFiTune: feed-forward networks of a range of layers, with soft masks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from deltamend.errors import UsageError
from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun
from deltamend.recipes.unit_masks import Masked, MaskedRecipe, gradient_factors, unit_importance


class CoFiTune(Recipe):
    """Train only the feed-forward networks of layers from a quarter to half of the depth, with soft masks (Zhang et al. 2024).

    The coarse level is the authors' range of layers, (N×25 %, N×50 %]; everything else is frozen. Their scripts train the up and down
    projections and leave the gate's frozen; here it is trained, too, since it belongs to the same neurons. The fine level multiplies the updates of a hidden neuron's weights by 1 − I, as `soft-masks` does, whose page says
    why it is not the gradients, as in the paper.
    """

    name: ClassVar[str] = "cofitune"
    source: ClassVar[str] = "arXiv 2404.10306"
    summary: ClassVar[str] = "Train feed-forward networks of some layers only, with soft masks."
    needs: ClassVar[str] = "old examples, without labels, and layers whose units are known"
    uses_old: ClassVar[bool] = True
    full_only: ClassVar[bool] = True
    off: ClassVar[dict[str, Any]] = {"trained": "all", "strength": 0.0}

    above: float = Field(0.25, ge=0.0, lt=1.0, description="Layers above this share of the depth are trained.")
    up_to: float = Field(0.5, gt=0.0, le=1.0, description="Layers up to this share of the depth are trained.")
    trained: Literal["feed-forward", "all"] = Field(
        "feed-forward", description="What is trained: feed-forward networks of these layers, or all weights."
    )
    strength: float = Field(1.0, ge=0.0, le=1.0, description="Factor of the importance in the masks; 1 is the paper's.")
    masked: Masked = Field(
        "update", description="What is multiplied by 1 − I: the change of a weight in each step, or its gradient."
    )
    dropout: float = Field(0.1, gt=0.0, lt=1.0, description="Share of the units dropped while importance is computed.")

    def begin(self, run: TrainingRun) -> RunningRecipe:
        """Freeze what is not trained, and compute the importance of the units; see `Recipe.start`.

        Raises:
            UsageError: the model has no feed-forward network in the range.
        """
        depth = max((one.layer for one in run.units), default=-1) + 1
        units = [one for one in run.units if one.kind == "mlp"]
        if self.trained == "feed-forward":
            units = [one for one in units if self.above * depth < one.layer + 1 <= self.up_to * depth]
            if run.units and not units:
                raise UsageError(
                    f"recipe cofitune: none of the {depth} layers is above {self.above:g} and up to {self.up_to:g} of the depth; "
                    "give another `above` or `up_to`"
                )
        importance = unit_importance(run, units, self.dropout)
        if self.trained == "feed-forward":
            own = {name for one in units for name, _ in one.weights}
            for name, parameter in run.model.named_parameters():
                parameter.requires_grad_(name in own)
        return MaskedRecipe(run, gradient_factors(run.trained(), units, importance, self.strength), self.masked)
