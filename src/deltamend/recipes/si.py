"""SI: synaptic intelligence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from deltamend.recipes.gradients import drawn, loss_gradient
from deltamend.recipes.importance import AnchoredRecipe
from deltamend.recipes.recipe import Recipe, RunningRecipe, TrainingRun

if TYPE_CHECKING:
    import torch


class Si(Recipe):
    """Synaptic intelligence: the loss plus c·Σ Ω·(θ − θ_base)², with Ω = ω/(Δ² + ξ) (Zenke et al. 2017).

    ω is the path integral of −(gradient)·(change) of a parameter over the training on the old task: what the parameter did to lower its
    loss; Δ is how far it went. The paper keeps ω while the old task is learnt. The training of a base is over, so the path is walked
    anew, and this is ours: `path_steps` steps of AdamW on the old examples, at the learning rate of the training, after which the
    weights go back to the base. A negative Ω counts as 0, as in the authors' code, since it would reward moving. ξ = 0.1 is that code's
    for permuted MNIST. c = 0.1 is one of the values it tries there, and chosen here; neither was made for language models.
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

        def gradients(step: int) -> dict[str, torch.Tensor]:
            return loss_gradient(run, drawn(old, run.batch, run.seed, step), parameters)

        lowered = path_integral(parameters, gradients, optimizer, self.path_steps)
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
    gradients_at: Callable[[int], dict[str, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> dict[str, torch.Tensor]:
    """ω of every parameter, float32 in its shape: the sum over the steps of −(gradient)·(change); the weights have moved afterwards.

    Args:
        parameters: what `optimizer` trains, by name.
        gradients_at: gives the gradient of the loss in step number n, by name of parameter.
        optimizer: takes the steps.
        steps: how many.

    Source: Zenke et al. 2017, the sum that stands for its path integral. Over short steps, the sum over all parameters is the fall of the loss.
    """
    import torch

    found = {name: torch.zeros_like(one, dtype=torch.float32) for name, one in parameters.items()}
    for step in range(steps):
        gradients = gradients_at(step)
        before = {name: one.detach().clone() for name, one in parameters.items()}
        for name, one in parameters.items():
            one.grad = gradients[name].clone()
        optimizer.step()
        for name, one in parameters.items():
            found[name] -= gradients[name].float() * (one.detach() - before[name]).float()
    return found
