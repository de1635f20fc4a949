"""What the code of a module tells about its parameters, without running it."""

from __future__ import annotations

import torch

from deltamend.language_models.parameter_use import Use, use_of


class Mixed(torch.nn.Module):
    """Uses a parameter in every way that is told apart; it only serves to be read."""

    plain: torch.Tensor
    inputs_first: torch.Tensor
    added: torch.Tensor
    turned: torch.Tensor
    halves: torch.Tensor
    product: torch.Tensor
    offset: torch.Tensor
    decay: torch.Tensor
    kernel: torch.Tensor
    given_away: torch.Tensor

    def forward(self, x: torch.Tensor, index: int) -> torch.Tensor:
        x = torch.nn.functional.linear(x, self.plain[index].to(x.dtype))
        x = x @ self.inputs_first[index] + self.added[index]
        x = torch.bmm(x, self.turned.transpose(1, 2))
        weight, _ = self.halves.chunk(2, dim=-1)
        x = torch.matmul(weight, x)
        x = torch.baddbmm(self.offset, x, self.product)
        x = x * -torch.exp(self.decay.float())
        x = torch.nn.functional.conv1d(x, self.kernel)
        return helper(x, self.given_away)


class Child(Mixed):
    """Has its code from its parent."""

    def reset_parameters(self) -> None:
        torch.matmul(self.decay, self.decay)


def helper(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return x


def test_factors_of_a_product_are_told_from_numbers_used_one_by_one() -> None:
    expected = {
        "plain": Use("product"),
        "inputs_first": Use("product", transposed=True),
        "turned": Use("product"),
        "halves": Use("product"),
        "product": Use("product", transposed=True),
        "added": Use("elementwise"),
        "decay": Use("elementwise"),
        "kernel": Use("convolution"),
        "offset": None,
        "given_away": None,
        "missing": None,
    }
    for module in (Mixed, Child):
        assert {name: use_of(module, name) for name in expected} == expected


def test_a_class_without_source_says_nothing() -> None:
    made = type("Made", (torch.nn.Module,), {})
    assert use_of(made, "weight") is None
