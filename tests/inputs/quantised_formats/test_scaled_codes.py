"""Weights stored in fp8 with scales; the tensors decide, and the config only says how large blocks are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


NAME = "model.layers.0.mlp.up_proj"
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{layout} {kind} {strategy}{' with zero points' if asymmetric else ''}": (
        layout,
        {"type": kind, "strategy": strategy, "symmetric": not asymmetric, **more},
    )
    for layout, kind in (
        ("float-quantized", "float"),
        ("int-quantized", "int"),
        ("naive-quantized", "float"),
        ("naive-quantized", "int"),
        ("mxfp8-quantized", "float"),
    )
    for strategy, more in (
        ("tensor", {}),
        ("channel", {}),
        ("group", {"group_size": 32}),
        ("block", {"block_structure": [16, 32]}),
    )
    for asymmetric in ((False, True) if kind == "int" and strategy != "block" else (False,))
    if layout != "mxfp8-quantized" or strategy == "group"
}


@pytest.mark.parametrize("case", SCHEMES)
def test_values_equal_those_of_compressed_tensors(case: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    layout, args = SCHEMES[case]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=8, **args))
    shape = {"tensor": (1,), "channel": (48, 1), "group": (48, 3), "block": (3, 3)}[args["strategy"]]
    generator = torch.Generator().manual_seed(0)
    largest = 448 if args["type"] == "float" else 128
    scale = ((torch.rand(shape, generator=generator) + 2) / largest).to(torch.bfloat16)
    if layout == "mxfp8-quantized":
        scale = torch.exp2(torch.round(torch.log2(scale.float()))).to(torch.bfloat16)
    state = {"weight": torch.randn(48, 96, generator=generator).to(torch.bfloat16), "weight_scale": scale}
    if not args["symmetric"]:
        state["weight_zero_point"] = torch.randint(-3, 4, shape, dtype=torch.int8, generator=generator)
    compressor = BaseCompressor.get_value_from_registry(layout)
    stored = compressor.compress(state, scheme)
    weights = {key: value for key, value in args.items() if key != "symmetric"}
    said = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8, **weights}}}}
    save_file({f"{NAME}.{leaf}": part.contiguous() for leaf, part in stored.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    with open_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors[f"{NAME}.weight"]
        ours = torch.from_numpy(checkpoint.values(tensor, 0, tensor.elements)).reshape(tensor.shape)
    theirs = compressor.decompress(stored, scheme)["weight"]
    assert torch.equal(ours.to(theirs.dtype), theirs)


@pytest.mark.parametrize("powers", [False, True])
def test_blocks_equal_what_transformers_dequantises(powers: bool, tmp_path: Path) -> None:
    """DeepSeek's and Qwen's, whose scales may be powers of two."""
    integration = pytest.importorskip("transformers.integrations.finegrained_fp8")
    codes = torch.randn(64, 96).to(torch.float8_e4m3fn)
    scale = torch.rand(4, 3) + 0.5
    stored_scale = torch.exp2(torch.round(torch.log2(scale / 64))).to(torch.float8_e8m0fnu) if powers else scale
    save_file({f"{NAME}.weight": codes, f"{NAME}.weight_scale_inv": stored_scale}, tmp_path / "model.safetensors")
    said = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    with open_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors[f"{NAME}.weight"]
        ours = torch.from_numpy(checkpoint.values(tensor, 0, tensor.elements)).reshape(tensor.shape)
    theirs = integration.Fp8Dequantize(None)._dequantize_one(codes, stored_scale, torch.float32)
    assert torch.equal(ours, theirs)


def test_bytes_that_hold_two_floats_each_are_not_taken_for_integers(tmp_path: Path) -> None:
    codes = torch.randint(-128, 128, (48, 32), dtype=torch.int8)
    save_file({f"{NAME}.weight": codes, f"{NAME}.weight_scale_inv": torch.rand(48, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(CheckpointError, match=r"up_proj.weight' holds two 4-bit floats in each byte"):
        open_checkpoint(tmp_path).close()
