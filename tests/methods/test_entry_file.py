"""A file of masks holds for the tensor as stored, however its rows are matched or cut."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

import deltamend
from tests.conftest import llama, save_pair
from tests.inputs.checkpoints import phi3, tokenizer
from tests.reference import load


def test_a_mask_is_for_the_rows_of_the_tensor_however_they_are_matched(tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    tokenizer(pair.base, [f"a{row}" for row in range(200)])
    tokenizer(pair.finetuned, [*(f"new{row}" for row in range(50)), *(f"a{row}" for row in range(150))])
    finetuned = load(pair.finetuned)
    masks = {
        name: torch.zeros(tensor.shape, dtype=torch.uint8) for name, tensor in finetuned.items() if tensor.ndim == 2
    }
    masks["lm_head.weight"][60:70] = 1
    save_file(masks, tmp_path / "mask")
    deltamend.repair(
        pair.base,
        pair.finetuned,
        tmp_path / "out",
        method="graft",
        parameters={"mask": str(tmp_path / "mask")},
        allow_unrelated=True,
    )
    base, out = load(pair.base)["lm_head.weight"], load(tmp_path / "out")["lm_head.weight"]
    torch.testing.assert_close(out[60:70], finetuned["lm_head.weight"][60:70])
    assert torch.equal(out[70:], base[20:150])
    assert torch.equal(out[:50], finetuned["lm_head.weight"][:50])


def test_a_mask_holds_for_the_parts_of_a_tensor(tmp_path: Path) -> None:
    pair = save_pair(phi3(), tmp_path)
    finetuned = load(pair.finetuned)
    masks = {
        name: torch.zeros(tensor.shape, dtype=torch.uint8) for name, tensor in finetuned.items() if tensor.ndim == 2
    }
    name = "model.layers.0.self_attn.qkv_proj.weight"
    masks[name][60:] = 1
    save_file(masks, tmp_path / "mask")
    given = {"method": "graft", "parameters": {"mask": str(tmp_path / "mask")}, "split_fused": True}
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", **given)  # type: ignore[arg-type]
    out, base = load(tmp_path / "out"), load(pair.base)
    assert torch.equal(out[name], torch.where(masks[name].bool(), finetuned[name], base[name]))
