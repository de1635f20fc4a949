"""Intruder dimensions are those that peft finds."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

import deltamend
from deltamend.spectrum.decompositions import Workspace
from tests.methods.spectra import NAME, SHAPES, kept, pair, rebuilt


class OneLayer(torch.nn.Module):
    """A model of one linear layer, for peft."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(shape[1], shape[0], bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Not used."""
        result: torch.Tensor = self.proj(values)
        return result


@pytest.mark.parametrize("shape", SHAPES)
def test_intruder_dimensions_are_those_peft_finds(shape: tuple[int, int]) -> None:
    peft = pytest.importorskip("peft", reason="peft is the reference here; install the dev extra")
    intruders: Any = importlib.import_module("peft.tuners.lora.intruders")
    torch.manual_seed(0)
    rank, keep = 4, 0.6
    model = peft.get_peft_model(
        OneLayer(shape).double(), peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["proj"])
    )
    layer = model.base_model.model.proj
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.randn(rank, shape[1]))
        layer.lora_B["default"].weight.copy_(torch.randn(shape[0], rank))
    base = layer.get_base_layer().weight.detach().clone()
    update = layer.get_delta_weight("default").detach().clone().to(base.dtype)
    intruders.reduce_intruder_dimension(
        model, top_k=6, threshold_epsilon=0.7, mitigation_lambda=keep, logging_sink=None
    )
    expected = layer.get_delta_weight("intruder_reduced").detach().numpy()
    ours = deltamend.repair_state_dict(
        {NAME: base},
        {NAME: base + update},
        method="intruder",
        parameters={"top": 6, "epsilon": 0.7, "keep": keep},
    )
    assert "intruder dimension" in ours.records[NAME].reason
    out = (ours.tensors[NAME] - base).numpy()
    assert np.linalg.norm(out - update.numpy()) > 0.1 * np.linalg.norm(update.numpy())
    # peft keeps what an adapter of its rank can hold; ours keeps all.
    values = np.linalg.svd(out, compute_uv=False)
    truncated = rebuilt(out, np.where(np.arange(values.size) < rank, values, 0.0))
    assert np.linalg.norm(truncated - expected) < 2e-5 * np.linalg.norm(expected)


def test_directions_the_base_has_are_no_intruders() -> None:
    base, _ = pair((60, 40))
    record = deltamend.repair_state_dict(
        {NAME: torch.from_numpy(base)}, {NAME: torch.from_numpy(1.1 * base)}, method="intruder"
    ).records[NAME]
    assert (record.outcome, record.reason) == ("identity", "no intruder dimension")


def test_intruders_are_found_whatever_scratch_memory_held(monkeypatch: pytest.MonkeyPatch) -> None:
    base, update = pair((40, 60))
    expected = kept("intruder", base, 20 * update, epsilon=0.9)
    original = Workspace.array

    def poisoned(self: Workspace, *arguments: Any) -> Any:
        array = original(self, *arguments)
        array.fill(np.nan)
        return array

    monkeypatch.setattr(Workspace, "array", poisoned)
    np.testing.assert_array_equal(kept("intruder", base, 20 * update, epsilon=0.9), expected)
