"""Plain training."""

from __future__ import annotations

from typing import ClassVar

from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun


class Plain(Recipe):
    """AdamW on the loss of the new examples and nothing else (Loshchilov & Hutter 2019): what every other recipe is measured against."""

    name: ClassVar[str] = "plain"
    source: ClassVar[str] = "arXiv 1711.05101"
    summary: ClassVar[str] = "Train on the new examples, and do nothing against forgetting."
    needs: ClassVar[str] = "nothing else"

    def begin(self, run: TrainingRun) -> RunningRecipe:  # noqa: ARG002 - nothing to prepare
        """Prepare nothing; see `Recipe.start`."""
        return RunningRecipe()
