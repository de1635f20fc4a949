"""LoRA with the setting of its authors for GPT-2."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from deltamend.recipes.recipe import AdapterSettings, Recipe, RunningRecipe, TrainingRun


class Lora(Recipe):
    """Leave the weights W as they are and train ΔW = (α/r)·B·A of rank r beside them (Hu et al. 2022).

    A starts at random and B at zero, so that training starts at the base. r = 4 and α = 32, on the projections of queries and values,
    are what the authors' code trains GPT-2 with; its dropout of 0.1 is left out here. The sum W + ΔW is written, as a whole model.
    A model whose projections are stored as one matrix needs `layers=all-linear`.
    """

    name: ClassVar[str] = "lora"
    source: ClassVar[str] = "arXiv 2106.09685"
    summary: ClassVar[str] = "Train an update of low rank beside the frozen weights."
    needs: ClassVar[str] = "nothing else"

    rank: int = Field(4, ge=1, description="Rank of the update, r in the paper.")
    alpha: float = Field(32.0, gt=0, description="Scale of the update, α in the paper; it is multiplied by α/r.")
    layers: Literal["query-value", "all-linear"] = Field(
        "query-value", description="Which layers get an update: projections of queries and values, or all but the head."
    )

    @property
    def adapter(self) -> AdapterSettings:
        """The adapter."""
        return AdapterSettings(self.rank, self.alpha, self.layers)

    def begin(self, run: TrainingRun) -> RunningRecipe:  # noqa: ARG002 - the adapter is all there is to it
        """Prepare nothing; see `Recipe.start`."""
        return RunningRecipe()
