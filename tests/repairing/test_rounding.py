"""Rounding: unbiased where it is stochastic, once where it is to nearest, and a function of name and position alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deltamend
from deltamend.matrices import buffers
from deltamend.matrices import delta as delta_module
from deltamend.repairing.rounding import round_for, rounding_bits
from tests.conftest import Pair
from tests.reference import load

_ANY_METHOD = Literal["nearest", "stochastic"]
"""The roundings that do not need to know the inputs of a matrix."""
BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)
DTYPES = pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
NUMBERS = (
    st.floats(-60000, 60000, width=32) | st.floats(-(2**-13), 2**-13, width=32) | st.floats(-(2**-23), 2**-23, width=32)
)


def rounded(values: np.ndarray, dtype: np.dtype, name: str = "a") -> np.ndarray:
    shape = (values.shape[0], values.shape[1])
    found: np.ndarray = round_for(values, dtype, rounding_bits("stochastic", name, shape)).astype(dtype)
    return found


@DTYPES
@pytest.mark.parametrize("value", [1.0001, -0.3, 3.3e-5, -7e-8, 1000.7])
@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_the_mean_of_many_roundings_is_the_value(dtype: np.dtype, value: float, wide: type) -> None:
    found = rounded(np.full((400, 500), value, wide), dtype).astype(np.float64)
    values, counts = np.unique(found, return_counts=True)
    assert len(values) == 2
    assert values[0] < value < values[1]
    share = (value - values[0]) / (values[1] - values[0])
    assert counts[1] / found.size == pytest.approx(share, abs=5 * (share * (1 - share) / found.size) ** 0.5)


@pytest.mark.slow
@DTYPES
@settings(max_examples=300, deadline=None)
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=8))
def test_every_value_goes_to_one_of_its_neighbours(dtype: np.dtype, numbers: list[float]) -> None:
    values = np.array([numbers], np.float32)
    found = rounded(values, dtype)
    nearest = values.astype(dtype)
    down, up = (np.nextafter(nearest, np.array(side, dtype)).astype(np.float64) for side in (-np.inf, np.inf))
    assert np.all((found == nearest) | (found.astype(np.float64) == down) | (found.astype(np.float64) == up))
    assert np.all(found[nearest.astype(np.float32) == values] == nearest[nearest.astype(np.float32) == values])
    assert np.all(np.abs(found.astype(np.float64) - values) <= np.maximum(up - nearest, nearest - down))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(numbers=st.lists(st.floats(-1e38, 1e38), min_size=1, max_size=8), exponent=st.integers(-60, 0))
def test_fp64_is_rounded_to_bf16_once(numbers: list[float], exponent: int) -> None:
    values = np.array(numbers) * 2.0**exponent
    found = round_for(values, BF16).astype(BF16).astype(np.float64)
    nearest = values.astype(BF16)
    for neighbour in (np.nextafter(nearest, np.array(side, BF16)).astype(np.float64) for side in (-np.inf, np.inf)):
        assert np.all(np.abs(found - values) <= np.abs(neighbour - values))


def test_a_tie_of_a_tie_is_not_rounded_twice() -> None:
    value = np.array([1.0 + 2.0**-8 + 2.0**-40])  # just above half-way between two bf16 values, half-way in fp32
    assert value.astype(BF16) == 1.0  # what the plain cast makes of it
    assert round_for(value, BF16).astype(BF16) == 1.0 + 2.0**-7


def test_stochastic_output_does_not_depend_on_blocks_or_workers(
    llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = (llama_pair.base, llama_pair.finetuned)
    # Its Δ* itself does not depend on the blocks.
    options: dict[str, Any] = {"method": "wise-ft", "rounding": "stochastic"}
    deltamend.repair(*sides, tmp_path / "whole", workers=1, **options)
    monkeypatch.setattr(delta_module, "BLOCK_ELEMENTS", 50 * 64)
    monkeypatch.setattr(buffers, "CHUNK_ELEMENTS", 7 * 64)
    deltamend.repair(*sides, tmp_path / "blocks", workers=3, **options)
    whole, blocks = load(tmp_path / "whole"), load(tmp_path / "blocks")
    assert all(torch.equal(tensor, blocks[name]) for name, tensor in whole.items())


def test_stochastic_rounding_keeps_on_average_what_rounding_to_nearest_loses(llama_pair: Pair, tmp_path: Path) -> None:
    sides = (llama_pair.base, llama_pair.finetuned)
    base, finetuned = load(llama_pair.base), load(llama_pair.finetuned)
    matrices = [name for name, tensor in base.items() if tensor.ndim == 2]
    wanted = {name: 1e-4 * (finetuned[name].double() - base[name].double()) for name in matrices}
    shares = {}
    for rounding in get_args(_ANY_METHOD):
        deltamend.repair(
            *sides, tmp_path / rounding, method="wise-ft", parameters={"alpha": 1e-4}, rounding=rounding
        )  # fmt: skip
        out = load(tmp_path / rounding)
        along = sum(float(((out[name].double() - base[name].double()) * wanted[name]).sum()) for name in matrices)
        shares[rounding] = along / sum(float(wanted[name].pow(2).sum()) for name in matrices)
        assert all(torch.equal(out[name], tensor) for name, tensor in finetuned.items() if tensor.ndim != 2)
    assert shares["nearest"] < 0.5
    assert shares["stochastic"] == pytest.approx(1.0, abs=0.1)


def test_fp32_is_not_rounded(llama_pair: Pair, tmp_path: Path) -> None:
    sides = (llama_pair.base, llama_pair.finetuned)
    for rounding in get_args(_ANY_METHOD):
        deltamend.repair(*sides, tmp_path / rounding, out_dtype="fp32", rounding=rounding)
    near, drawn = load(tmp_path / "nearest"), load(tmp_path / "stochastic")
    assert all(torch.equal(tensor, drawn[name]) for name, tensor in near.items())
