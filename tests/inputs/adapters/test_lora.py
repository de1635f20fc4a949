"""A model with a LoRA adapter as FINETUNED, against PEFT's own merge in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import deltamend
from tests.conftest import Printed, gpt2, llama, save_pair
from tests.inputs.adapters.building import adapted, merged, shown
from tests.reference import load

# PEFT asks transformers 5 for a property by its old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]

Cli = Callable[..., Printed]
LLAMA = ["q_proj", "v_proj", "down_proj"]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (llama, {"target_modules": LLAMA}),
        (llama, {"target_modules": LLAMA, "use_rslora": True}),
        (llama, {"target_modules": LLAMA, "rank_pattern": {"v_proj": 7}, "alpha_pattern": {"^model.layers.1.+q_proj": 11}}),
        (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        (llama, {"target_modules": ["q_proj", "embed_tokens"]}),
        (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ],
    ids=["plain", "rslora", "patterns", "modules-to-save", "embedding", "conv1d"],
)  # fmt: skip
def test_an_adapted_model_is_read_as_peft_merges_it(
    make: Callable[..., PreTrainedModel], options: dict[str, Any], tmp_path: Path
) -> None:
    pair = adapted(tmp_path, make(torch.float32), **options)
    expected, found = merged(pair), shown(f"{pair.base}+{pair.finetuned}")
    base = load(pair.base)
    changed = [name for name in base if not torch.equal(base[name].double(), expected[name])]
    assert len(changed) >= 3
    for name in base:
        np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=0, atol=2e-7)
        if name not in changed:
            assert np.array_equal(found[name], base[name].double().numpy())


def test_it_is_unchanged_by_dg_hard_which_says_why_and_what_to_do(tmp_path: Path, deltamend_cli: Cli) -> None:
    pair = adapted(tmp_path, llama(), target_modules=LLAMA)
    printed = deltamend_cli("repair", pair.base, f"{pair.base}+{pair.finetuned}", tmp_path / "out", "--json")
    assert printed.code == 0, printed.err
    assert "a LoRA adapter on 6 matrices, of rank 4" in printed.err
    manifest = json.loads(printed.out)
    kept = [tensor for tensor in manifest["tensors"] if tensor["outcome"] == "no-noise-floor"]
    assert len(kept) == 6
    assert all("a LoRA update of rank 4" in tensor["reason"] for tensor in kept)
    assert all("spectrum=nonzero" in tensor["reason"] for tensor in kept)
    assert manifest["finetuned"]["name"] == "base+adapter"
    assert [file["name"] for file in manifest["finetuned"]["files"]] == [
        "adapter_model.safetensors",
        "model.safetensors",
    ]
    expected, out = merged(pair), load(tmp_path / "out")
    for name, tensor in out.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name].to(torch.bfloat16))
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_its_own_spectrum_is_filtered_on_request(tmp_path: Path) -> None:
    pair = adapted(tmp_path, llama(torch.float32), target_modules=["q_proj"], r=12, lora_alpha=12)
    path = pair.finetuned / "adapter_model.safetensors"
    factors = load_file(path)
    for name, tensor in factors.items():
        if "lora_B" in name:
            left, _, right = torch.linalg.svd(tensor, full_matrices=False)
            factors[name] = (left * torch.tensor([40.0, 20.0, *[1.0] * 10]) @ right).contiguous()
        else:
            factors[name] = torch.linalg.svd(tensor, full_matrices=False)[2].contiguous()
    save_file(factors, path, metadata={"format": "pt"})
    report = deltamend.repair(
        pair.base, f"{pair.base}+{pair.finetuned}", tmp_path / "out", parameters={"spectrum": "nonzero"}
    )
    ranks = {
        tensor.spectrum.rank for tensor in report.tensors if tensor.spectrum is not None and "q_proj" in tensor.name
    }
    assert ranks == {2}
    base, whole, out = load(pair.base), merged(pair), load(tmp_path / "out")
    for name in (name for name in base if "q_proj" in name):
        left, values, right = np.linalg.svd((whole[name] - base[name].double()).numpy())
        kept = (left[:, :2] * values[:2]) @ right[:2]
        assert np.linalg.norm(out[name].double().numpy() - base[name].double().numpy() - kept) < 1e-5 * np.linalg.norm(
            kept
        )


def test_the_same_bytes_with_any_number_of_workers_and_after_a_resumed_run(tmp_path: Path) -> None:
    pair = adapted(tmp_path, llama(), target_modules=LLAMA)
    spec = f"{pair.base}+{pair.finetuned}"
    for workers in (1, 3):
        deltamend.repair(pair.base, spec, tmp_path / str(workers), method="wise-ft", workers=workers)
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("1", "3"))
    assert ours == theirs
    assert deltamend.repair(pair.base, spec, tmp_path / "1", method="wise-ft", resume=True).written is False
    assert deltamend.verify(tmp_path / "1") == []
    config = pair.finetuned / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 9}))
    assert deltamend.repair(pair.base, spec, tmp_path / "1", method="wise-ft", resume=True, overwrite=True).written


def test_another_base_than_the_adapted_model_is_a_full_update(tmp_path: Path) -> None:
    pair = adapted(tmp_path, llama(torch.float32), target_modules=LLAMA)
    other = save_pair(llama(torch.float32), tmp_path / "other")
    report = deltamend.repair(pair.base, f"{other.finetuned}+{pair.finetuned}", tmp_path / "out")
    assert {tensor.outcome for tensor in report.tensors if tensor.action == "filter"} == {"filtered"}


def test_an_adapter_with_more_tokens_brings_its_vocabulary(tmp_path: Path) -> None:
    model = llama(torch.float32)
    model.save_pretrained(tmp_path / "base")
    model.resize_token_embeddings(203, mean_resizing=False)
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    )
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "tokenizer.json").write_text('{"model": {"vocab": {}}, "of": "adapter"}')
    report = deltamend.repair(tmp_path / "base", f"{tmp_path / 'base'}+{tmp_path / 'adapter'}", tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.vocab_size == 203
    assert torch.equal(loaded.lm_head.weight, model.lm_head.modules_to_save["default"].weight)
    assert "adapter" in (tmp_path / "out" / "tokenizer.json").read_text()
    assert any("vocabulary resized from 200 to 203" in tensor.reason for tensor in report.tensors)


def test_an_adapter_of_another_model_or_none_at_all_is_refused(tmp_path: Path, deltamend_cli: Cli) -> None:
    pair = adapted(tmp_path, llama(), target_modules=LLAMA)
    gpt2().save_pretrained(tmp_path / "gpt2")
    for spec, says in (
        (f"{tmp_path / 'gpt2'}+{pair.finetuned}", "does not fit the model"),
        (f"{pair.base}+{tmp_path / 'gpt2'}", "adapter_config.json: missing"),
        (f"{pair.base}+{tmp_path / 'absent'}", "no such folder"),
    ):
        printed = deltamend_cli("repair", pair.base, spec, tmp_path / "out")
        assert (printed.code, printed.err.count("\n")) == (1, 1)
        assert says in printed.err


def test_an_adapter_to_an_adapted_base_is_not_written(tmp_path: Path, deltamend_cli: Cli) -> None:
    pair = adapted(tmp_path, llama(), target_modules=LLAMA)
    spec = f"{pair.base}+{pair.finetuned}"
    printed = deltamend_cli("repair", spec, pair.base, tmp_path / "out", "--as", "adapter", "--allow-unrelated")
    assert (printed.code, "BASE already has an adapter, and peft loads only one" in printed.err) == (2, True)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=["factors", "whole"],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_on_a_tied_embedding_leaves_the_head_as_peft_does(options: dict[str, Any], tmp_path: Path) -> None:
    pair = adapted(tmp_path, llama(torch.float32, tied=True), **options)
    deltamend.repair(pair.base, f"{pair.base}+{pair.finetuned}", tmp_path / "out", method="none", out_dtype="fp32")
    base = AutoModelForCausalLM.from_pretrained(pair.base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, str(pair.finetuned))
    out = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[1, 5, 9, 2]])
    torch.testing.assert_close(out(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_square_conv1d_is_known_by_the_architecture_and_not_by_one_flag_for_all(tmp_path: Path) -> None:
    pair = adapted(tmp_path, gpt2(torch.float32), target_modules=["attn.c_proj"], fan_in_fan_out=True)
    path = pair.finetuned / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fan_in_fan_out": False}))  # as saved after a Linear
    found = shown(f"{pair.base}+{pair.finetuned}")
    path.write_text(json.dumps({**json.loads(path.read_text()), "fan_in_fan_out": True}))
    expected = merged(pair)
    for name in (name for name in found if "attn.c_proj.weight" in name):
        np.testing.assert_allclose(found[name], expected[name].numpy(), atol=2e-7)


@pytest.mark.parametrize("pattern", ["((\\w+)+\\.?)+X", ".*.*.*.*X", "x" * 301])
def test_a_pattern_that_could_run_for_hours_is_refused(pattern: str, tmp_path: Path) -> None:
    pair = adapted(tmp_path, llama(), target_modules=LLAMA)
    path = pair.finetuned / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "alpha_pattern": {pattern: 3}}))
    with pytest.raises(deltamend.CheckpointError, match="too complicated"):
        deltamend.repair(pair.base, f"{pair.base}+{pair.finetuned}", tmp_path / "out")
