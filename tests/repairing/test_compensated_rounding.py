"""Compensated rounding: on the grid, near the best there is in its metric, row by row, and used where a method has a metric."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

import deltamend
from deltamend.errors import FilterError, UsageError
from deltamend.repairing.compensated_rounding import CompensatedRounding
from tests.methods.test_null_space import NAME, moments_of

BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)
Array = npt.NDArray[Any]


def metric_of(width: int, seed: int = 0, spread: float = 2.0) -> Array:
    drawn = np.random.default_rng(seed)
    inputs = drawn.standard_normal((2 * width, width)) * np.logspace(0, -spread, width)
    turned, _ = np.linalg.qr(drawn.standard_normal((width, width)))
    second = turned.T @ (inputs.T @ inputs) @ turned
    found: Array = second * width / np.trace(second) + 0.01 * np.eye(width)
    return found


def error(rounded: Array, values: Array, metric: Array) -> Array:
    lost = rounded - values
    found: Array = np.einsum("ij,jk,ik->i", lost, metric, lost)
    return found


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("width", [7, 64, 150])
@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_it_loses_less_in_its_metric_than_rounding_to_nearest(dtype: Any, width: int, wide: type) -> None:
    values: Array = np.random.default_rng(1).standard_normal((200, width)).astype(wide)
    metric = metric_of(width)
    rounded = CompensatedRounding(metric).round(values, dtype)
    np.testing.assert_array_equal(rounded, rounded.astype(dtype).astype(np.float64))
    nearest = values.astype(dtype).astype(np.float64)
    assert error(rounded, values, metric).mean() < 0.6 * error(nearest, values, metric).mean()


def test_in_a_metric_without_mixed_terms_it_rounds_to_nearest() -> None:
    values = np.random.default_rng(1).standard_normal((50, 90)).astype(np.float32)
    rounded = CompensatedRounding(np.diag(np.linspace(0.1, 3.0, 90))).round(values, BF16)
    np.testing.assert_array_equal(rounded, values.astype(BF16).astype(np.float64))


def test_it_does_about_as_well_as_the_best_choice_among_the_neighbours_of_every_entry() -> None:
    values = np.random.default_rng(3).standard_normal((60, 6))
    metric = metric_of(6, seed=4, spread=1.0)
    sides = (np.nextafter(values.astype(BF16), np.array(side, BF16)) for side in (-np.inf, np.inf))
    grid = np.stack([values.astype(BF16), *sides]).astype(np.float64)
    tries = [
        np.stack([grid[pick, :, column] for column, pick in enumerate(picks)], 1)
        for picks in product(range(3), repeat=6)
    ]
    best = np.min([error(one, values, metric) for one in tries], axis=0)
    found = error(CompensatedRounding(metric).round(values, BF16), values, metric)
    assert found.mean() < 1.5 * best.mean()  # on single rows it may be better, as it may go further than to a neighbour


def test_the_first_columns_errors_are_made_up_for_as_a_least_squares_fit_would() -> None:
    values = np.random.default_rng(5).standard_normal((1, 5))
    metric = metric_of(5, seed=6)
    first = int(np.argmax(np.diag(metric)))
    rest = [column for column in range(5) if column != first]
    rounded = CompensatedRounding(metric).round(values, BF16)
    lost = values[0, first] - rounded[0, first]
    best = values[0, rest] + lost * np.linalg.solve(metric[np.ix_(rest, rest)], metric[rest, first])
    second = rest[int(np.argmax(np.diag(metric)[rest]))]
    assert rounded[0, second] == best[rest.index(second)].astype(BF16)


def test_each_row_is_rounded_by_itself() -> None:
    values = np.random.default_rng(1).standard_normal((40, 130))
    rounding = CompensatedRounding(metric_of(130))
    whole = rounding.round(values, BF16)
    parts = np.concatenate([rounding.round(values[start : start + 7], BF16) for start in range(0, 40, 7)])
    np.testing.assert_array_equal(whole, parts)


def test_a_value_that_overflows_stays_infinite_and_spoils_no_other() -> None:
    values = np.ones((2, 4))
    values[0, 1] = 1e39
    rounded = CompensatedRounding(metric_of(4)).round(values, BF16)
    assert np.isinf(rounded[0, 1])
    assert np.isfinite(np.delete(rounded, 1, 1)).all()


def test_a_metric_that_is_none_is_refused() -> None:
    with pytest.raises(FilterError, match="metric"):
        CompensatedRounding(-np.eye(3))
    with pytest.raises(FilterError, match="metric"):
        CompensatedRounding(np.full((3, 3), np.nan))


@pytest.mark.parametrize(
    ("method", "parameters"), [("null-space", {"ridge": 0.5}), ("two-sided", {"strength": 2.0, "update": 0.5})]
)
def test_a_repair_written_in_bf16_does_less_to_the_bases_own_inputs(
    tmp_path: Path, method: str, parameters: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(1)
    turned = torch.linalg.qr(torch.randn(24, 24, generator=generator)).Q
    inputs = torch.randn(100, 24, generator=generator) * torch.logspace(0, -2, 24) @ turned
    own = moments_of(inputs, tmp_path / "own")
    base = torch.randn(60, 24, generator=generator).bfloat16()
    tuned = (base.float() + 0.004 * torch.randn(60, 24, generator=generator)).bfloat16()
    given: dict[str, Any] = {"method": method, "parameters": {"activations": own, **parameters}}

    def lost(rounding: Any) -> float:
        exact = deltamend.repair_state_dict({NAME: base}, {NAME: tuned}, out_dtype="fp32", **given).tensors[NAME]
        found = deltamend.repair_state_dict({NAME: base}, {NAME: tuned}, rounding=rounding, **given).tensors[NAME]
        assert found.dtype == torch.bfloat16
        return float(((found.float() - exact) @ (inputs / inputs.norm(dim=1, keepdim=True)).T).norm())

    assert lost("compensated") < 0.7 * lost("nearest")
    written = deltamend.repair_state_dict(
        {NAME: base}, {NAME: tuned}, out_dtype="fp32", rounding="compensated", **given
    )
    exact = deltamend.repair_state_dict({NAME: base}, {NAME: tuned}, out_dtype="fp32", **given)
    assert torch.equal(written.tensors[NAME], exact.tensors[NAME])  # nothing is rounded


def test_a_method_without_a_metric_cannot_compensate() -> None:
    base, tuned = torch.zeros(8, 4), torch.ones(8, 4)
    with pytest.raises(UsageError, match=r"no method of this repair [(]wise-ft[)] knows the inputs"):
        deltamend.repair_state_dict({NAME: base}, {NAME: tuned}, method="wise-ft", rounding="compensated")
