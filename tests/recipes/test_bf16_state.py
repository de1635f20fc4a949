from __future__ import annotations

import copy

import torch

from deltamend.recipes.bf16_state import hold_in_bf16


def test_a_step_is_that_of_the_fused_adamw_on_bf16_tensors() -> None:
    """On the same gradients: to the last bit, moments included, and most small steps are lost in both."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(37, 19, bias=True)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    real = copy.deepcopy(model).to(torch.bfloat16)
    ours, theirs = (torch.optim.AdamW(one.parameters(), lr=2e-5, weight_decay=0.0, fused=True) for one in (model, real))
    hold_in_bf16(model, ours)
    before = model.weight.detach().clone()
    for _ in range(5):
        for held, stored in zip(model.parameters(), real.parameters(), strict=True):
            held.grad = torch.randn(held.shape, generator=generator)
            stored.grad = held.grad.bfloat16()
        ours.step()
        theirs.step()
        for held, stored in zip(model.parameters(), real.parameters(), strict=True):
            assert torch.equal(held.detach(), stored.detach().float())
            for moment in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(ours.state[held][moment], theirs.state[stored][moment].float())
    unchanged = (model.weight.detach() == before).float().mean()
    assert 0.2 < unchanged < 1.0


def test_gradients_are_bf16_as_soon_as_they_are_there() -> None:
    model = torch.nn.Linear(5, 3)
    hold_in_bf16(model, torch.optim.AdamW(model.parameters(), fused=True))
    for _ in range(2):  # added up over two micro-batches
        model(torch.randn(4, 5)).square().sum().backward()
        for weight in model.parameters():
            assert weight.grad is not None
            assert torch.equal(weight.grad, weight.grad.bfloat16().float())
