"""Weights stored in fp8 with scales; the tensors decide, and the config only says how large blocks are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
)

import deltamend
from deltamend.errors import CheckpointError
from deltamend.inputs.open_models import open_checkpoint
from tests.conftest import llama, save_pair
from tests.inputs.checkpoints import Cli, check
from tests.reference import load


def quantised(folder: Path, scheme: str) -> dict[str, torch.Tensor]:
    """Turn a checkpoint's linear weights into fp8 with scales; the weights they stand for."""
    path = folder / "model.safetensors"
    stored, means = {}, {}
    for name, tensor in load_file(path).items():
        if tensor.ndim != 2 or "proj" not in name:
            stored[name] = means[name] = tensor
            continue
        block = {"block": (16, 16), "row": (1, tensor.shape[1]), "tensor": tuple(tensor.shape)}[scheme]
        padded = [-(-size // step) for size, step in zip(tensor.shape, block, strict=True)]
        scale = torch.empty(padded)
        codes = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
        for i in range(padded[0]):
            for j in range(padded[1]):
                part = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
                scale[i, j] = tensor[part].abs().max() / 448
                codes[part] = (tensor[part] / scale[i, j]).to(torch.float8_e4m3fn)
        spread = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        means[name] = codes.float() * spread[: tensor.shape[0], : tensor.shape[1]]
        stored[name] = codes
        key = "weight_scale_inv" if scheme == "block" else "weight_scale"
        stored[name.replace("weight", key)] = scale.reshape(1) if scheme == "tensor" else scale
    save_file(stored, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    weights = {"num_bits": 8, "type": "float", "strategy": scheme}
    config["quantization_config"] = (
        {"quant_method": "fp8", "weight_block_size": [16, 16]}
        if scheme == "block"
        else {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    )
    (folder / "config.json").write_text(json.dumps(config))
    return means


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["block", "row", "tensor"])
@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_fp8_weights_are_read_with_their_scales(scheme: str, side: str, tmp_path: Path) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    sides = {"base": load(pair.base), "finetuned": load(pair.finetuned)}
    sides[side] = quantised(tmp_path / side, scheme)
    report = deltamend.repair(pair.base, pair.finetuned, tmp_path / "out", out_dtype="fp32")
    out = load(tmp_path / "out")
    assert check((sides["base"], sides["finetuned"]), out) == 16
    assert out.keys() == sides["finetuned"].keys()
    assert any("14 weights are stored in fp8 (e4m3)" in note for note in report.manifest.notes)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    if side == "finetuned":
        written = deltamend.repair(pair.base, pair.finetuned, tmp_path / "bf16")
        projections = {tensor.dtype for tensor in written.tensors if "proj" in tensor.name}
        assert projections == {"BF16"}


@pytest.mark.parametrize(
    "config", [{"quant_method": "fp8", "weight_block_size": [64, 64]}, {"quant_method": "gptq", "bits": 4}, "nonsense"]
)
def test_blocks_that_the_config_does_not_explain_are_refused_in_one_line(
    config: object, tmp_path: Path, deltamend_cli: Cli
) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    quantised(pair.base, "block")
    content = json.loads((pair.base / "config.json").read_text())
    (pair.base / "config.json").write_text(json.dumps({**content, "quantization_config": config}))
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "out")
    assert (printed.code, printed.err.count("\n")) == (1, 1)
    assert "which config.json does not account for" in printed.err
    assert not (tmp_path / "out").exists()


def test_codes_without_scales_are_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].to(
        torch.float8_e5m2
    )
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"q_proj.weight' \(F8_E5M2\) has no scales beside it"):
        open_checkpoint(tmp_path).close()


def test_groups_of_columns_need_no_config(tmp_path: Path) -> None:
    llama().config.save_pretrained(tmp_path)
    codes, scale = torch.randn(48, 64).to(torch.float8_e4m3fn), torch.rand(48, 4) + 0.5
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: codes, f"{name}_scale": scale}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        values = checkpoint.values(checkpoint.tensors[name], 0, 48 * 64).reshape(48, 64)
        assert np.array_equal(values, (codes.float() * scale.repeat_interleave(16, 1)).numpy())
