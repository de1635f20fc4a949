"""LP-FT: the head first, then everything."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from deltamend.errors import UsageError
from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun


class LpFt(Recipe):
    """Linear probing, then fine-tuning: train the output layer alone, then all weights from there (Kumar et al. 2022).

    A head that fits the new task before the features move makes the later gradients of the features smaller. The paper probes until
    the head has converged, for classifiers whose head is new; it has no setting for language models, whose head is trained already.
    Half of the steps is chosen here. Where the head is tied to the embedding, the two are one matrix: the first phase then moves that
    matrix, and with it the embedding.
    """

    name: ClassVar[str] = "lp-ft"
    source: ClassVar[str] = "arXiv 2202.10054"
    summary: ClassVar[str] = "Train the head first, then all weights."
    needs: ClassVar[str] = "a head"
    full_only: ClassVar[bool] = True
    off: ClassVar[dict[str, Any]] = {"probing": 0.0}

    probing: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of the steps in which the head alone is trained; 0 is plain training."
    )

    def begin(self, run: TrainingRun) -> RunningRecipe:
        """Find the head; see `Recipe.start`.

        Raises:
            UsageError: the model has no head of its own.
        """
        if not set(run.head) & set(run.trained()):
            raise UsageError("recipe lp-ft: the model has no head that is trained; take another recipe")
        return _HeadFirst(run, round(self.probing * run.steps))


class _HeadFirst(RunningRecipe):
    def __init__(self, run: TrainingRun, until: int) -> None:
        self._rest = [one for name, one in run.trained().items() if name not in run.head]
        self._until = until

    def before_step(self, step: int) -> None:
        """Freeze the rest in the first phase, and no longer after it."""
        for one in self._rest:
            one.requires_grad_(step >= self._until)
            if step < self._until:
                one.grad = None  # AdamW leaves a weight without a gradient alone

    def after_step(self, step: int) -> None:  # noqa: ARG002 - whatever the step
        """Thaw the rest, so that whatever looks between steps finds every weight as one that is trained."""
        for one in self._rest:
            one.requires_grad_(True)
