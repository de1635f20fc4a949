"""How much each parameter matters to a model: Fisher information, sensitivity of the outputs, and the anchor made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltamend.recipes.gradients import add_to_gradient, evaluating, gradients_of
from deltamend.recipes.recipe import RunningRecipe, TrainingRun

if TYPE_CHECKING:
    import torch


def fisher_information(run: TrainingRun) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher information over the old examples: the mean of (∇ log p(ŷ | x))², by name of parameter.

    ŷ is drawn from the model, one for every prediction of an example; the gradient is that of the log-likelihood of the whole
    example.
    """
    import torch

    parameters = run.trained()
    found = {name: torch.zeros_like(one, dtype=torch.float32) for name, one in parameters.items()}
    examples = run.all_old
    with evaluating(run.model):
        for number, example in enumerate(examples):
            logits = run.outputs(run.model, [example])
            generator = torch.Generator().manual_seed((run.seed << 20) + number)
            labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
            surprise = torch.nn.functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")
            for name, gradient in gradients_of(surprise, parameters).items():
                found[name].addcmul_(gradient.float(), gradient.float(), value=1 / len(examples))
    return found


def output_sensitivity(run: TrainingRun) -> dict[str, torch.Tensor]:
    """The mean over the old examples of |∂‖F(x)‖²/∂θ|, by name of parameter; F(x) are the logits.

    ‖F(x)‖² is the mean over the predictions of an example. No label is needed.
    """
    import torch

    parameters = run.trained()
    found = {name: torch.zeros_like(one, dtype=torch.float32) for name, one in parameters.items()}
    examples = run.all_old
    with evaluating(run.model):
        for example in examples:
            squared = run.outputs(run.model, [example]).square().sum(-1).mean()
            for name, gradient in gradients_of(squared, parameters).items():
                found[name].add_(gradient.float().abs(), alpha=1 / len(examples))
    return found


class AnchoredRecipe(RunningRecipe):
    """Pull every parameter back to the base in proportion to its importance: adds `factor` · Ω · (θ − θ_base) to the gradient.

    Args:
        run: the training.
        importance: Ω, by name of parameter, in the parameter's shape.
        factor: of the penalty's gradient; that of (λ/2)·Ω·(θ − θ_base)² is λ.
    """

    def __init__(self, run: TrainingRun, importance: Mapping[str, torch.Tensor], factor: float) -> None:
        self._parameters = run.trained()
        self._base = {name: one.detach().clone() for name, one in self._parameters.items()}
        self._importance = importance
        self._factor = factor

    def after_backward(self, step: int) -> None:  # noqa: ARG002 - the same in every step
        """Add the gradient of the penalty."""
        for name, one in self._parameters.items():
            away = (one.detach() - self._base[name]).float()
            add_to_gradient(one, self._importance[name] * away, self._factor)

    def held(self) -> Sequence[torch.Tensor]:
        """The base's weights and their importance."""
        return [*self._base.values(), *self._importance.values()]
