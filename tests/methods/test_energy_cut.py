"""One threshold for all matrices: the largest singular values of the model, up to a share of the energy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deltamend


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.95])
def test_the_largest_values_of_all_matrices_are_kept_up_to_the_share(energy: float) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = {"model.layers.0.a.weight": 1.0, "model.layers.1.b.weight": 0.3, "model.layers.2.c.weight": 0.01}
    base = {name: torch.zeros(40, 24) for name in sizes}
    updates = {name: size * torch.randn(40, 24, generator=generator) for name, size in sizes.items()}
    kept = deltamend.repair_state_dict(base, updates, method="energy-cut", parameters={"energy": energy}).tensors
    values = {name: np.linalg.svd(update.double().numpy(), compute_uv=False) for name, update in updates.items()}
    ordered = np.sort(np.concatenate(list(values.values())))[::-1]
    held = np.cumsum(ordered**2) / np.sum(ordered**2)
    threshold = ordered[int(np.searchsorted(held, energy))]
    ranks = {name: int(np.linalg.matrix_rank(kept[name].double().numpy(), tol=1e-4)) for name in sizes}
    wanted = {name: int(np.count_nonzero(found >= threshold)) for name, found in values.items()}
    assert abs(sum(ranks.values()) - sum(wanted.values())) <= 1  # cells are 0.05 % wide
    assert all(abs(ranks[name] - wanted[name]) <= 1 for name in sizes)
    total = sum(float(update.square().sum()) for update in updates.values())
    share = sum(float(tensor.square().sum()) for tensor in kept.values()) / total
    assert energy - 1e-3 <= share <= energy + ordered[0] ** 2 / np.sum(ordered**2)


def test_a_weak_matrix_goes_back_to_the_base_where_a_strong_one_holds_the_energy() -> None:
    generator = torch.Generator().manual_seed(2)
    base = {"strong.weight": torch.zeros(12, 8), "weak.weight": torch.ones(12, 8)}
    finetuned = {
        "strong.weight": torch.randn(12, 8, generator=generator),
        "weak.weight": 1.0 + 1e-4 * torch.randn(12, 8, generator=generator),
    }
    kept = deltamend.repair_state_dict(base, finetuned, method="energy-cut", parameters={"energy": 0.9}).tensors
    assert torch.equal(kept["weak.weight"], base["weak.weight"])
    assert not torch.equal(kept["strong.weight"], base["strong.weight"])
