"""Fisher information and output sensitivity against one gradient for each example, and the penalties made of them."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad

from benchmarks.recipes.toy import Example, Network, network, outputs, run_of
from deltamend.recipes.importance import fisher_information, output_sensitivity
from deltamend.recipes.registry import get_recipe


def by_example(model: Network, example: Example, label: int | None) -> dict[str, torch.Tensor]:
    """The gradient of −log p(label), or without one of ‖F(x)‖², by torch.func."""

    def value(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = functional_call(model, parameters, (example.pixels,))
        return logits.square().sum() if label is None else -logits.log_softmax(-1)[label]

    found: dict[str, torch.Tensor] = grad(value)({name: one.detach() for name, one in model.named_parameters()})
    return found


def test_the_fisher_information_is_the_mean_of_squared_gradients_of_drawn_labels(
    model: Network, old: list[Example]
) -> None:
    run = run_of(model, old, seed=4)
    expected = {name: torch.zeros_like(one) for name, one in model.named_parameters()}
    for number, example in enumerate(old):
        generator = torch.Generator().manual_seed((4 << 20) + number)
        chances = outputs(model, [example]).detach().softmax(-1)
        label = int(torch.multinomial(chances, 1, generator=generator))
        for name, gradient in by_example(model, example, label).items():
            expected[name] += gradient**2 / len(old)
    for name, found in fisher_information(run).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_labels_are_drawn_from_the_model(model: Network) -> None:
    """Over many draws, the Fisher information of one input is the expectation over the labels."""
    example = Example(torch.randn(64, generator=torch.Generator().manual_seed(1)), 0)
    chances = outputs(model, [example]).detach().softmax(-1)[0]
    exact = sum(
        float(chances[label]) * by_example(model, example, label)["head.bias"] ** 2 for label in range(len(chances))
    )
    found = fisher_information(run_of(model, [example] * 300))["head.bias"]
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05)


def test_the_sensitivity_is_the_mean_of_absolute_gradients_of_the_squared_norm(
    model: Network, old: list[Example]
) -> None:
    found = output_sensitivity(run_of(model, old))
    gradients = [by_example(model, example, None) for example in old]
    for name, one in found.items():
        torch.testing.assert_close(one, sum(each[name].abs() for each in gradients) / len(old), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("recipe", "half"), [("ewc", 0.5), ("mas", 1.0)])
def test_the_penalty_has_the_gradient_of_its_formula(recipe: str, half: float, old: list[Example]) -> None:
    """(λ/2)·Σ F·d² for EWC and λ·Σ Ω·d² for MAS, by autograd."""
    model = network(2)
    run = run_of(model, old)
    importance = fisher_information(run) if recipe == "ewc" else output_sensitivity(run)
    base = {name: one.detach().clone() for name, one in model.named_parameters()}
    running = get_recipe(recipe, {"strength": 3.0}).start(run)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.01 * torch.randn(one.shape, generator=torch.Generator().manual_seed(one.numel())))
    penalty = torch.stack(
        [half * 3.0 * (importance[name] * (one - base[name]) ** 2).sum() for name, one in model.named_parameters()]
    ).sum()
    expected = torch.autograd.grad(penalty, list(model.parameters()))
    running.after_backward(0)
    for one, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(one.grad, gradient, rtol=1e-4, atol=1e-8)
