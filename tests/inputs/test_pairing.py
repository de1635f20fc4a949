"""Which tensors are matrices, which matrices a tensor holds, and which models do not belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)

import deltamend
from tests.conftest import llama, save_pair
from tests.inputs.checkpoints import Cli, check, mixtral, qwen3_moe, tuned
from tests.reference import load


def by_expert(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fused experts as one matrix each, gate and up apart, under the names of single ones."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 3:
            found[name.replace("block_sparse_moe", "mlp")] = tensor
            continue
        for number, expert in enumerate(tensor):
            found[f"{name}[{number}]"] = expert
    return found


@pytest.mark.parametrize("make", [mixtral, qwen3_moe], ids=lambda make: make.__name__)
def test_fused_experts_are_a_matrix_each(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "base", save_original_format=False)
    tuned(model).save_pretrained(tmp_path / "finetuned", save_original_format=False)
    report = deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    base, finetuned, out = (by_expert(load(tmp_path / name)) for name in ("base", "finetuned", "out"))
    assert check((base, finetuned), out) > 6
    (fused,) = [tensor for tensor in report.tensors if tensor.name.endswith("experts.gate_up_proj")]
    assert [part.label for part in fused.parts] == ["[0]", "[1]", "[2]"]
    assert all(part.spectrum is not None and part.spectrum.rank == 2 for part in fused.parts)
    assert fused.reason == "3 matrices in one tensor; 3 filtered"
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_the_kernel_of_a_convolution_is_a_matrix_over_its_output_channels(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (24, 6, 3, 3)
    base = {
        "conv.weight": torch.randn(shape, generator=generator),
        "cls_token": torch.randn(1, 1, 24, generator=generator),
    }
    signal = torch.randn(24, 1, generator=generator) @ torch.randn(1, 54, generator=generator)
    tuned = base["conv.weight"] + 1e-3 * torch.randn(shape, generator=generator) + 0.05 * signal.reshape(shape)
    for name, tensors in (("base", base), ("finetuned", {"conv.weight": tuned, "cls_token": base["cls_token"] + 1})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    report = deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    out = load(tmp_path / "out")
    sides = ({"w": base["conv.weight"].flatten(1)}, {"w": tuned.flatten(1)})
    assert check(sides, {"w": out["conv.weight"].flatten(1)}) == 1
    assert torch.equal(out["cls_token"], base["cls_token"] + 1)
    assert {tensor.name: tensor.action for tensor in report.tensors} == {"conv.weight": "filter", "cls_token": "keep"}


def test_a_depthwise_kernel_is_no_matrix_and_stays_as_fine_tuned(tmp_path: Path) -> None:
    base = {"conv1d.weight": torch.randn(24, 1, 4), "in_proj.weight": torch.randn(24, 12)}
    finetuned = {name: tensor + torch.randn(tensor.shape) for name, tensor in base.items()}
    for name, tensors in (("base", base), ("finetuned", finetuned)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    report = deltamend.repair(tmp_path / "base", tmp_path / "finetuned", tmp_path / "out")
    reasons = {tensor.name: tensor.reason for tensor in report.tensors if tensor.action == "keep"}
    assert reasons == {"conv1d.weight": "not a matrix: the kernel of a depthwise convolution"}
    assert torch.equal(load(tmp_path / "out")["conv1d.weight"], finetuned["conv1d.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model_type", "architectures"])
def test_a_config_of_another_kind_is_a_hint_where_names_and_shapes_agree(
    key: str, tmp_path: Path, deltamend_cli: Cli
) -> None:
    pair = save_pair(llama(torch.float32), tmp_path)
    deltamend.repair(pair.base, pair.finetuned, tmp_path / "expected")
    config = json.loads((pair.finetuned / "config.json").read_text())
    other = "mistral" if key == "model_type" else ["FSDPLlamaForCausalLM"]
    (pair.finetuned / "config.json").write_text(json.dumps(config | {key: other}))
    printed = deltamend_cli("repair", pair.base, pair.finetuned, tmp_path / "out")
    assert printed.code == 0, printed.err
    assert (
        f"config.json: {key} is {config[key]!r} in BASE and {other!r} in FINETUNED; names and shapes agree"
        in printed.out
    )
    ours, theirs = load(tmp_path / "out"), load(tmp_path / "expected")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
