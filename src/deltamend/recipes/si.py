"""SI: synaptic intelligence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from deltamend.recipes.gradients import drawn, gradients_of
from deltamend.recipes.importance import AnchoredRecipe
from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun

if TYPE_CHECKING:
    import torch


class Si(Recipe):
    """Synaptic intelligence: the loss plus c·Σ Ω·(θ − θ_base)², with Ω = ω/(Δ² + ξ) (Zenke et al. 2017, equations 4 and 5).

    ω is the path integral of −(gradient)·(change) of a parameter over the training on the old task: what the parameter did to lower its
    loss; Δ is how far it went. The paper keeps ω while the old task is learnt. The training of a base is over, so the path is walked
    anew, and this is ours: `path_steps` steps of AdamW on the old examples, at the learning rate of the training, after which the
    weights go back to the base. A negative ω counts as 0, since it would reward moving. c = 0.1 and ξ = 0.1 are the paper's for
    permuted MNIST; it has none for language models.
    """

    name: ClassVar[str] = "si"
    source: ClassVar[str] = "arXiv 1703.04200"
    summary: ClassVar[str] = "Hold back weights by what they did for the loss on the old examples."
    needs: ClassVar[str] = (
        "old examples, a short training on them first, and two more copies of the trained weights in memory"
    )
    uses_old: ClassVar[bool] = True
    off: ClassVar[dict[str, Any]] = {"strength": 0.0}

    strength: float = Field(0.1, ge=0.0, description="c of the paper; 0 is plain training.")
    damping: float = Field(0.1, gt=0.0, description="ξ of the paper, in squared units of the weights.")
    path_steps: int = Field(50, ge=1, description="Optimiser steps on the old examples.")

    def begin(self, run: TrainingRun) -> RunningRecipe:
        """Walk the path, and go back; see `Recipe.start`."""
        import torch

        parameters = run.trained()
        base = {name: one.detach().clone() for name, one in parameters.items()}
        optimizer = torch.optim.AdamW(list(parameters.values()), lr=run.lr, weight_decay=0.0)
        old = run.all_old

        def loss(step: int) -> torch.Tensor:
            return run.loss(run.model, drawn(old, run.batch, run.seed, step))

        lowered = path_integral(parameters, loss, optimizer, self.path_steps)
        importance = {}
        with torch.no_grad():
            for name, one in parameters.items():
                went = (one - base[name]).float()
                importance[name] = lowered[name].clamp(min=0) / (went.square() + self.damping)
                one.copy_(base[name])
                one.grad = None
        return AnchoredRecipe(run, importance, 2 * self.strength)


def path_integral(
    parameters: Mapping[str, torch.nn.Parameter],
    loss: Callable[[int], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> dict[str, torch.Tensor]:
    """ω of every parameter, float32 in its shape: the sum over the steps of −(gradient)·(change); the weights have moved afterwards.

    Args:
        parameters: what `optimizer` trains, by name.
        loss: the loss of step number n, a scalar.
        optimizer: takes the steps.
        steps: how many.

    Source: Zenke et al. 2017, equation 3. Over short steps, the sum over all parameters is the fall of the loss.
    """
    import torch

    found = {name: torch.zeros_like(one, dtype=torch.float32) for name, one in parameters.items()}
    for step in range(steps):
        gradients = gradients_of(loss(step), parameters)
        before = {name: one.detach().clone() for name, one in parameters.items()}
        for name, one in parameters.items():
            one.grad = gradients[name].clone()
        optimizer.step()
        for name, one in parameters.items():
            found[name] -= gradients[name].float() * (one.detach() - before[name]).float()
    return found
