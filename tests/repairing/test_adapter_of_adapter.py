"""`BASE BASE+ADAPTER --as adapter`: methods that keep the rank of an update give an adapter of the same rank."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import deltamend
from deltamend.matrices import delta as delta_module
from tests.conftest import Printed, llama
from tests.repairing.test_to_adapter import assert_same_model

RANK = 3
METHODS: dict[str, dict[str, Any]] = {
    "wise-ft": {"alpha": 0.4},
    "task-arithmetic": {"weight": 0.7},
    "lines": {"alpha": 0.3},
    "null-space": {"ridge": 0.5},
    "equal-effect": {"effect": 0.01},
    "two-sided": {"strength": 2.0},
    "none": {},
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base in bf16, a LoRA adapter to some of its layers, and a file of made-up activations of the base."""
    folder = tmp_path_factory.mktemp("lora")
    llama().save_pretrained(folder / "base")
    targets = ["q_proj", "o_proj", "down_proj", "up_proj"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft's own
        model = get_peft_model(llama(), LoraConfig(r=RANK, lora_alpha=6, target_modules=targets))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder / "adapter"))
    moments = {}
    for name, weight in load_file(folder / "base" / "model.safetensors").items():
        if weight.ndim == 2:
            width = weight.shape[1]
            moments[name] = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q.contiguous()
            moments[f"{name}.eigenvalues"] = torch.logspace(0, -2, width)
    save_file(
        moments, folder / "activations.safetensors", metadata={"format": "pt", "activations": "4", "same_input": "{}"}
    )
    return folder / "base", folder / "adapter", folder / "activations.safetensors"


def parameters_of(method: str, activations: Path) -> dict[str, Any]:
    reads = method in ("null-space", "equal-effect", "two-sided")
    return METHODS[method] | ({"activations": activations} if reads else {})


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_peft_gives_the_logits_of_the_fp32_checkpoint_at_the_same_rank(
    tuned: tuple[Path, Path, Path], tmp_path: Path, method: str
) -> None:
    base, adapter, activations = tuned
    sides, given = (base, f"{base}+{adapter}"), parameters_of(method, activations)
    deltamend.repair(*sides, tmp_path / "checkpoint", out_dtype="fp32", method=method, parameters=given)
    report = deltamend.repair(*sides, tmp_path / "out", output="adapter", method=method, parameters=given)
    assert deltamend.verify(tmp_path / "out") == []
    assert_same_model(tmp_path / "out", base, tmp_path / "checkpoint")
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    before = load_file(adapter / "adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in stored.items()} == {name: one.shape for name, one in before.items()}
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == RANK
    assert report.realised_error < 1e-6
    untouched = [one for one in report.tensors if "k_proj" in one.name]
    assert {one.outcome for one in untouched} == {"zero"}


@pytest.mark.slow
def test_small_blocks_and_any_number_of_workers_give_the_same_product(
    tuned: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = tuned

    def product(out: Path, workers: int) -> dict[str, torch.Tensor]:
        deltamend.repair(base, f"{base}+{adapter}", out, output="adapter", method="lines", workers=workers)
        stored = load_file(out / "adapter_model.safetensors")
        return {
            name: stored[name.replace("lora_A", "lora_B")] @ tensor
            for name, tensor in stored.items()
            if "lora_A" in name
        }

    one, two = product(tmp_path / "one", 1), product(tmp_path / "two", 2)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    monkeypatch.setattr(delta_module, "BLOCK_ELEMENTS", 500)
    for name, tensor in product(tmp_path / "small", 2).items():
        torch.testing.assert_close(tensor, one[name], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_auto_writes_an_adapter_where_the_update_is_one(
    tuned: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, activations = tuned
    advice = deltamend.Recommendation("null-space", {"activations": str(activations)}, "finetuned", "as told")
    monkeypatch.setattr("deltamend._api.recommend", lambda *_, **__: advice)
    report = deltamend.repair(base, f"{base}+{adapter}", tmp_path / "out", method="auto", output="adapter")
    assert report.manifest.is_adapter


def test_auto_and_an_adapter_of_a_whole_model_are_refused_before_the_base_is_run(
    tuned: tuple[Path, Path, Path], tmp_path: Path, deltamend_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, activations = tuned
    merged = tmp_path / "merged"
    deltamend.repair(base, f"{base}+{adapter}", merged, method="none")
    printed: Printed = deltamend_cli("repair", base, merged, tmp_path / "out", "--method", "auto", "--as", "adapter")
    assert printed.code == 2
    assert "only where FINETUNED is given as BASE+ADAPTER" in printed.err
    assert "use one of the methods" in printed.err
    wise = deltamend_cli("repair", base, merged, tmp_path / "out", "--method", "wise-ft", "--as", "adapter")
    assert wise.code == 2
    assert "or give FINETUNED as BASE+ADAPTER" in wise.err

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the base was run")

    monkeypatch.setattr("deltamend._api.recommend", never)
    with deltamend.open_pair(base, merged) as pair, pytest.raises(deltamend.UsageError, match="has no known rank"):
        deltamend.plan_repair(pair, out=tmp_path / "out", method="auto", output="adapter")
    assert activations.exists()
