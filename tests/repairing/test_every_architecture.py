"""One contract for every architecture: what a repair writes, and that transformers and peft load it as it was meant."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

import deltamend
from tests.inputs.architectures import MULTIMODAL, TEXT, build
from tests.reference import load

RANK = 3
TOKENS = torch.arange(3, 13)[None]
FUSED = {f"{name} fused": name for name in ("mixtral", "qwen3_moe", "deepseek_v3")}
"""Saved as they are in memory, with all experts of a layer in one tensor."""
FAST = {"granite_moe_hybrid", "gpt_oss", "mamba", "gemma3"}
STACKED = {"granite_moe_hybrid", "jetmoe", "gpt_oss", "llama4", "recurrent_gemma", "zamba", "dbrx", *FUSED}
"""Their files hold several matrices in one tensor, each with factors of its own, which an adapter cannot hold."""
NO_MATRIX = re.compile(r"bias$|A_log$|\.D$|conv_?1d|probe$|norm\.weight$")
"""What has two dimensions or more and is no matrix, in any of these models: biases, states, depthwise kernels, a query."""
EXPERTS_BELOW_EACH_OTHER = re.compile(r"experts\.mlp\.(w1|v1|w2)$")
"""DBRX's tensors of two dimensions, which hold the matrices of three experts."""
MERGED = {"qwen3_moe", "deepseek_v3", "mixtral"}
"""Their experts are stacked on loading, so that they are no modules of the loaded model."""


ALL = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in (*TEXT, *FUSED, *MULTIMODAL)]


@pytest.fixture(scope="module", params=ALL)
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of an architecture, and a folder with a base and a fine-tuned checkpoint of it, in fp32."""
    folder = tmp_path_factory.mktemp("model")
    model = model_of(request.param)
    fused = {"save_original_format": False} if request.param in FUSED else {}
    with torch.no_grad():  # nothing is left at 0 or 1, where an error could hide
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder / "base", **fused)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name in model.state_dict():
                buffer += 0.02
    model.save_pretrained(folder / "finetuned", **fused)
    return request.param, folder


def model_of(name: str) -> PreTrainedModel:
    return build(FUSED.get(name, name))


def loaded(folder: Path, name: str) -> Any:
    """The model in a folder; every tensor of the file has a place in it, and the other way round."""
    model, found = type(model_of(name)).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.mark.slow
def test_revert_gives_base_and_none_gives_finetuned(sides: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = sides
    base, finetuned = folder / "base", folder / "finetuned"
    deltamend.repair(base, finetuned, tmp_path / "base", method="revert", vectors="base")
    deltamend.repair(base, finetuned, tmp_path / "finetuned", method="none")
    for side in ("base", "finetuned"):
        assert (tmp_path / side / "model.safetensors").read_bytes() == (
            folder / side / "model.safetensors"
        ).read_bytes()


@pytest.mark.slow
def test_every_matrix_is_cut_to_its_rank_and_nothing_else_is_touched(sides: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = sides
    options: dict[str, Any] = {"method": "rank", "parameters": {"rank": RANK}}
    report = deltamend.repair(folder / "base", folder / "finetuned", tmp_path / "out", **options)
    base, finetuned, out = load(folder / "base"), load(folder / "finetuned"), load(tmp_path / "out")
    assert out.keys() == finetuned.keys()
    kept = {record.name: record.reason for record in report.tensors if record.action == "keep"}
    assert {tensor for tensor in kept if finetuned[tensor].ndim > 1} == {
        tensor for tensor in finetuned if finetuned[tensor].ndim > 1 and NO_MATRIX.search(tensor)
    }
    for tensor, value in finetuned.items():
        if tensor in kept:
            assert torch.equal(out[tensor], value), tensor
            assert kept[tensor].startswith("not a matrix")
            continue
        shape = (3, -1, value.shape[-1]) if EXPERTS_BELOW_EACH_OTHER.search(tensor) else value.shape
        delta = cut_to_rank((value.double() - base[tensor].double()).reshape(shape)).reshape(value.shape)
        expected = base[tensor].double() + delta
        torch.testing.assert_close(out[tensor].double(), expected, rtol=1e-5, atol=2e-6, msg=tensor)
    loaded(tmp_path / "out", name)


def cut_to_rank(delta: torch.Tensor) -> torch.Tensor:
    """The nearest of rank `RANK`: of three dimensions for each matrix of the stack, of more for the kernel of a convolution."""
    matrices = delta.flatten(1) if delta.ndim > 3 else delta
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    found: torch.Tensor = (u[..., :RANK] * s[..., None, :RANK]) @ v[..., :RANK, :]
    return found.reshape(delta.shape)


@pytest.mark.slow
def test_in_memory_the_modules_decide_and_give_the_same(sides: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = sides
    options: dict[str, Any] = {"method": "rank", "parameters": {"rank": RANK}}
    deltamend.repair(folder / "base", folder / "finetuned", tmp_path / "out", **options)
    base, finetuned, expected = (
        loaded(each, name) for each in (folder / "base", folder / "finetuned", tmp_path / "out")
    )
    found = deltamend.repair_module(base, finetuned, **options).module.state_dict()
    for tensor, value in expected.state_dict().items():
        if name in MERGED and ".experts.gate_up_proj" in tensor:  # two matrices in the file, one in memory
            continue
        torch.testing.assert_close(found[tensor], value, rtol=1e-5, atol=2e-6, msg=tensor)


@pytest.mark.slow
def test_as_an_adapter_it_gives_the_logits_of_the_checkpoint(sides: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = sides
    both = folder / "base", folder / "finetuned"
    options: dict[str, Any] = {"method": "rank", "parameters": {"rank": RANK}, "vectors": "base"}
    if name in STACKED | MERGED:
        with pytest.raises(deltamend.UsageError, match="repaired in parts" if name in STACKED else "has another name"):
            deltamend.repair(*both, tmp_path / "adapter", output="adapter", **options)
        return
    deltamend.repair(*both, tmp_path / "checkpoint", **options)
    deltamend.repair(*both, tmp_path / "adapter", output="adapter", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(loaded(folder / "base", name), str(tmp_path / "adapter")).eval()
    held = {key.replace(".default", "").replace(".modules_to_save", "") for key in adapted.state_dict()}
    assert set(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) <= held
    expected, before = logits(loaded(tmp_path / "checkpoint", name)), logits(loaded(folder / "base", name))
    assert float((logits(adapted) - expected).norm()) < 1e-3 * float((expected - before).norm())
