"""One number a matrix, at the effect that null-space is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deltamend
from deltamend.calibration.activations import described
from deltamend.calibration.second_moments import principal_directions
from deltamend.methods.input_moments import EIGENVALUES

NAME = "model.layers.0.mlp.up_proj.weight"


def _changed(weight: torch.Tensor, moment: torch.Tensor) -> float:
    """E‖Wx‖² over inputs of this second moment."""
    return float(torch.trace(weight.double() @ moment.double() @ weight.double().T))


@pytest.mark.parametrize("effect", [0.01, 0.05])
def test_the_outputs_change_as_much_as_by_null_space_and_every_entry_by_one_factor(
    tmp_path: Path, effect: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(99, 24, generator=generator) * torch.linspace(0.1, 2.0, 24)
    moment = inputs.T @ inputs / len(inputs)
    vectors, values = principal_directions(moment)
    file = tmp_path / "activations.safetensors"
    save_file({NAME: vectors, f"{NAME}{EIGENVALUES}": values}, file, metadata=described({}, {}))
    base = torch.randn(32, 24, generator=generator)
    delta = 0.3 * torch.randn(32, 24, generator=generator)
    found = {
        method: deltamend.repair_state_dict(
            {NAME: base}, {NAME: base + delta}, method=method, parameters={"activations": str(file), "effect": effect}
        ).tensors[NAME]
        - base
        for method in ("equal-effect", "null-space")
    }
    for kept in found.values():
        assert (_changed(kept, moment) / _changed(base, moment)) ** 0.5 == pytest.approx(effect, rel=1e-3)
    ours = found["equal-effect"]
    factor = float((ours * delta).sum() / delta.square().sum())
    assert float((ours - factor * delta).norm() / ours.norm()) < 1e-4
    assert found["null-space"].norm() > found["equal-effect"].norm()
