"""The second moment of a layer's inputs is the same whether the inputs are kept or their products are summed."""

from __future__ import annotations

import pytest
import torch

from deltamend.calibration.second_moments import InputMoment, principal_directions, principal_directions_of_rows


def _directions(count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, width)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator) * scales, dim=-1)


def _moment(parts: list[torch.Tensor]) -> InputMoment:
    found = InputMoment()
    for part in parts:
        found.add(part)
    found.tokens = sum(map(len, parts))
    return found


@pytest.mark.parametrize("counts", [[5], [3, 4, 5], [31], [32], [20, 20], [40, 3], [3, 40, 40]])
def test_it_is_the_mean_of_the_products_whatever_the_number_of_inputs(counts: list[int]) -> None:
    parts = [_directions(count, 32, seed) for seed, count in enumerate(counts)]
    vectors, values = _moment(parts).principal_directions()
    every = torch.cat(parts).double()
    torch.testing.assert_close((vectors.T * values @ vectors).double(), every.T @ every / len(every), rtol=0, atol=2e-7)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(len(vectors)), rtol=0, atol=1e-5)
    assert (values.diff() <= 0).all()
    assert len(values) == min(len(every), 32)


def test_few_inputs_are_kept_and_many_are_summed() -> None:
    few = _moment([_directions(10, 32), _directions(21, 32)])
    many = _moment([_directions(10, 32), _directions(22, 32), _directions(5, 32)])
    assert [tuple(part.shape) for part in few.parts] == [(10, 32), (21, 32)]
    assert [tuple(part.shape) for part in many.parts] == [(32, 32)]


def test_rows_have_the_principal_directions_of_their_products() -> None:
    rows = _directions(12, 32)
    vectors, values = principal_directions_of_rows(rows)
    other_vectors, other_values = principal_directions(rows.T @ rows)
    torch.testing.assert_close(values[:8], other_values[:8], rtol=1e-5, atol=1e-6)
    signs = (vectors[:8] * other_vectors[:8]).sum(1).sign()
    torch.testing.assert_close(vectors[:4] * signs[:4, None], other_vectors[:4], rtol=0, atol=1e-3)


def test_inputs_that_are_always_0_have_no_directions() -> None:
    vectors, values = _moment([torch.zeros(4, 32)]).principal_directions()
    assert (len(vectors), len(values)) == (0, 0)
