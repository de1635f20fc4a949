"""LiNeS scales by depth."""

from __future__ import annotations

import pytest
import torch

import deltamend

NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.2.mlp.up_proj.weight",
    "lm_head.weight",
)


@pytest.mark.parametrize(("alpha", "shares"), [(0.0, (0, 0, 0.5, 1, 1)), (0.4, (0.4, 0.4, 0.7, 1, 1))])
def test_shares_rise_linearly_from_the_first_layer_to_the_last(alpha: float, shares: tuple[float, ...]) -> None:
    base = {name: torch.zeros(6, 4) for name in NAMES}
    finetuned = {name: torch.ones(6, 4) for name in NAMES}
    out = deltamend.repair_state_dict(base, finetuned, method="lines", parameters={"alpha": alpha}).tensors
    for name, share in zip(NAMES, shares, strict=True):
        torch.testing.assert_close(out[name], torch.full((6, 4), float(share)))


def test_a_model_of_one_layer_is_kept() -> None:
    base, finetuned = ({"model.layers.0.w": fill * torch.ones(3, 3)} for fill in (0.0, 1.0))
    out = deltamend.repair_state_dict(base, finetuned, method="lines").tensors
    assert torch.equal(out["model.layers.0.w"], finetuned["model.layers.0.w"])


def test_a_number_that_is_no_layer_is_refused() -> None:
    base, finetuned = ({"blocks.123456.w": fill * torch.ones(3, 3)} for fill in (0.0, 1.0))
    with pytest.raises(deltamend.MethodError, match="123456 is no number of a layer"):
        deltamend.repair_state_dict(base, finetuned, method="lines")
