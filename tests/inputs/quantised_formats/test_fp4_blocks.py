"""4-bit floats with scales of blocks, against compressed-tensors and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import deltamend
from deltamend.errors import CheckpointError
from deltamend.inputs.open_models import open_checkpoint
from tests.conftest import fine_tune, llama
from tests.reference import load

NAME = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(("layout", "block"), [("nvfp4-pack-quantized", 16), ("mxfp4-pack-quantized", 32)])
def test_values_equal_those_of_compressed_tensors(layout: str, block: int, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = "tensor_group" if block == 16 else "group"
    args = QuantizationArgs(num_bits=4, type="float", strategy=strategy, group_size=block, symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    weight = torch.randn(40, 96, dtype=torch.bfloat16)
    largest = weight.float().reshape(40, -1, block).abs().amax(dim=2)
    state = {"weight": weight}
    if block == 16:
        state["weight_global_scale"] = torch.tensor([448 * 6 / float(weight.abs().max())])
        state["weight_scale"] = (largest / 6 * state["weight_global_scale"]).to(torch.float8_e4m3fn).float()
    else:
        state["weight_scale"] = torch.exp2(torch.floor(torch.log2(largest)) - 2)
    compressor = BaseCompressor.get_value_from_registry(layout)
    stored = compressor.compress(state, scheme)
    llama().config.save_pretrained(tmp_path)
    save_file({f"{NAME}.{leaf}": part.contiguous() for leaf, part in stored.items()}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors[f"{NAME}.weight"]
        ours = torch.from_numpy(checkpoint.values(tensor, 0, tensor.elements).reshape(tensor.shape))
    theirs = compressor.decompress(stored, scheme)["weight"]
    assert torch.equal(ours.to(theirs.dtype), theirs)


def gpt_oss() -> GptOssForCausalLM:
    torch.manual_seed(0)
    config = GptOssConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_local_experts=3, num_experts_per_tok=2, vocab_size=100, layer_types=["full_attention"],
    )  # fmt: skip
    return GptOssForCausalLM(config).to(torch.bfloat16)


def packed_experts(folder: Path) -> dict[str, torch.Tensor]:
    """Turn the experts of a folder into MXFP4, as gpt-oss stores them; what transformers unpacks them to."""
    path = folder / "model.safetensors"
    stored, values = {}, {}
    for name, tensor in load(folder).items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = values[name] = tensor
            continue
        experts, columns, rows = tensor.shape
        generator = torch.Generator().manual_seed(len(name))
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(115, 122, (experts, rows, columns // 32), dtype=torch.uint8, generator=generator)
        stored[f"{name}_blocks"], stored[f"{name}_scales"] = blocks, scales
        values[name] = convert_moe_packed_tensors(blocks, scales)
    save_file(stored, path, metadata={"format": "pt"})
    return values


def test_experts_equal_what_transformers_unpacks(tmp_path: Path) -> None:
    gpt_oss().save_pretrained(tmp_path)
    meant = packed_experts(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        stacks = [tensor for tensor in checkpoint.tensors.values() if tensor.packing == "MXFP4"]
        assert {tensor.name: tensor.shape for tensor in stacks} == {
            "model.layers.0.mlp.experts.gate_up_proj": (3, 64, 192),
            "model.layers.0.mlp.experts.down_proj": (3, 96, 64),
        }
        for tensor in stacks:
            values = checkpoint.values(tensor, 0, tensor.elements)
            assert np.array_equal(values, meant[tensor.name].float().numpy().reshape(-1))
            start, stop = tensor.elements // 4 + 5, tensor.elements * 3 // 4 - 3  # within experts and across their ends
            assert np.array_equal(checkpoint.values(tensor, start, stop), values[start:stop])
            errors = checkpoint.squared_errors(tensor, start, stop)
            assert errors is not None
            assert float(errors.min()) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("few_draws")
def test_a_packed_base_is_repaired_against(tmp_path: Path) -> None:
    model = gpt_oss()
    model.save_pretrained(tmp_path / "base")
    fine_tune(model)
    model.save_pretrained(tmp_path / "finetuned")
    meant = packed_experts(tmp_path / "base")
    sides = tmp_path / "base", tmp_path / "finetuned"
    deltamend.repair(*sides, tmp_path / "out", method="revert", allow_unrelated=True)  # the codes are random ones
    out = load(tmp_path / "out")
    for name in meant:
        if "experts" in name and "bias" not in name:
            assert torch.equal(out[name], meant[name]), name
    expert = deltamend.diagnose(*sides, include=r"experts\.down_proj", allow_unrelated=True).matrices[0]
    assert expert.rounding is not None
    assert expert.rounding.stored == "bfloat16, and of BASE to MXFP4,"


@pytest.mark.parametrize(
    ("blocks", "says"),
    [((3, 192, 2, 8), r"where \(experts, rows, blocks, 16\) is expected"), ((3, 192, 3, 16), "is expected")],
)
def test_experts_of_another_shape_are_refused(blocks: tuple[int, ...], says: str, tmp_path: Path) -> None:
    gpt_oss().save_pretrained(tmp_path)
    packed_experts(tmp_path)
    tensors = load(tmp_path)
    tensors["model.layers.0.mlp.experts.gate_up_proj_blocks"] = torch.zeros(blocks, dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path).close()
