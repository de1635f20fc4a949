"""Magnitude, TIES and graft keep the largest entries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import deltamend
from tests.methods.deltas import kept, matrices


@pytest.mark.parametrize("method", ["magnitude", "ties", "graft"])
@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_trimming_keeps_the_largest(method: str, scope: str) -> None:
    base, update = matrices()
    out = kept(method, base, update, density=0.25, scope=scope, weight=0.5)
    size = np.abs(update.numpy())
    mask = size >= np.sort(size.ravel())[::-1][600 - 1]
    np.testing.assert_allclose(out, 0.5 * update.numpy() * mask, atol=1e-15)


def test_trimming_the_model_weighs_tensors_against_each_other() -> None:
    sides = {f"layers.{index}.weight": matrices(seed=index) for index in range(3)}
    scales = dict(zip(sides, (1.0, 0.1, 10.0), strict=True))
    base = {name: side[0] for name, side in sides.items()}
    finetuned = {name: side[0] + scales[name] * side[1] for name, side in sides.items()}
    out = deltamend.repair_state_dict(base, finetuned, method="ties", parameters={"density": 0.3, "scope": "model"})
    updates = {name: (finetuned[name] - base[name]).numpy() for name in base}
    sizes = np.sort(np.abs(np.concatenate([update.ravel() for update in updates.values()])).astype(np.float32))
    smallest = sizes[::-1][round(0.3 * sizes.size) - 1]
    for name, update in updates.items():
        mask = np.abs(update).astype(np.float32) >= smallest
        np.testing.assert_allclose((out.tensors[name] - base[name]).numpy(), update * mask, atol=1e-14)
    damaged = {**finetuned, "layers.1.weight": finetuned["layers.1.weight"] * math.nan}
    with pytest.raises(deltamend.FilterError, match=r"layers.1.weight' holds NaN or Inf in FINETUNED"):
        deltamend.repair_state_dict(base, damaged, method="ties", parameters={"scope": "model"})


@pytest.mark.parametrize("method", ["magnitude", "ties", "graft", "breadcrumbs", "fapm"])
def test_as_many_are_kept_as_asked_for_where_sizes_are_equal(method: str) -> None:
    base = torch.ones(200, 300)
    generator = torch.Generator().manual_seed(0)
    update = torch.randint(1, 4, base.shape, generator=generator) * torch.where(
        torch.rand(base.shape, generator=generator) < 0.5, 1.0, -1.0
    )
    base[::2] = 2.0  # so that fapm has scores other than 0
    out = kept(method, base, update, density=0.2)
    assert np.count_nonzero(out) / out.size == pytest.approx(0.2, abs=0.01)
    columns = np.count_nonzero(out, axis=0)
    assert columns.min() > 15  # of 40 on average: not the first rows or columns
