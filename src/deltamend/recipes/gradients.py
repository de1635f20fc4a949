"""Gradients by the names of their parameters, and what recipes do with them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from deltamend.recipes.recipe import TrainingRun

if TYPE_CHECKING:
    import torch

_Item = TypeVar("_Item")


def gradients_of(value: torch.Tensor, parameters: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The gradient of a scalar by parameters, by name; zero where it does not depend on one. No `.grad` is touched."""
    import torch

    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(one) if gradient is None else gradient
        for (name, one), gradient in zip(parameters.items(), found, strict=True)
    }


def loss_gradient(run: TrainingRun, examples: Sequence[Any], parameters: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss over examples, by name of parameter, as many examples at a time as the training takes."""
    whole, size = run.predictions(examples), run.at_once or len(examples)
    found: dict[str, torch.Tensor] = {}
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        gradients = gradients_of(run.loss(run.model, part) * (run.predictions(part) / whole), parameters)
        for name, gradient in gradients.items():
            found[name] = found[name] + gradient if name in found else gradient
    return found


def add_to_gradient(parameter: torch.nn.Parameter, addend: torch.Tensor, factor: float = 1.0) -> None:
    """Add `factor` · `addend`, of the parameter's shape, to the gradient that the optimiser will use."""
    if parameter.grad is None:
        parameter.grad = (factor * addend).to(parameter.dtype)
    else:
        parameter.grad.add_(addend.to(parameter.grad.dtype), alpha=factor)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Within the block, the model is in evaluation mode, without dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def drawn(items: Sequence[_Item], count: int, seed: int, step: int) -> list[_Item]:
    """`count` of the items, or all of them if there are fewer, without replacement; by the seed and the number of the step."""
    return random.Random(f"{seed}/{step}").sample(list(items), min(count, len(items)))  # noqa: S311 - reproducible


def held_back(run: TrainingRun, memory: int) -> tuple[tuple[Any, ...], ...]:
    """At most `memory` examples of each group of old ones, by the seed."""
    return tuple(tuple(drawn(group, memory, run.seed, -1)) for group in run.old)
