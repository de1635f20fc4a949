"""Weights that stand in several places of the loaded model, as a head does which is tied to the embedding."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import PreTrainedModel

import deltamend
from tests.inputs.architectures import build
from tests.inputs.numpy_pairs import body, tuned, write

SIZES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "vocab_size": 90}


def modernbert() -> PreTrainedModel:
    """Its head is tied to its embedding, and is not called lm_head."""
    config = hf.ModernBertConfig(
        **SIZES, intermediate_size=40, num_attention_heads=4, cls_token_id=1, sep_token_id=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return hf.ModernBertForMaskedLM(config)


def rwkv() -> PreTrainedModel:
    """Its head is not tied, and is not called lm_head."""
    return hf.RwkvForCausalLM(hf.RwkvConfig(**SIZES, attention_hidden_size=48, context_length=32))


def pair(model: PreTrainedModel, folder: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    model.float().save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder / "finetuned")
    return folder / "base", folder / "finetuned"


def test_a_tied_head_of_any_name_is_no_head_that_an_adapter_may_forget(tmp_path: Path) -> None:
    with pytest.raises(deltamend.UsageError, match=r"'decoder\.bias' belongs to a head whose weight is tied"):
        deltamend.repair(*pair(modernbert(), tmp_path), tmp_path / "out", method="revert", output="adapter")


def test_layers_that_share_their_weights_are_named_as_the_reason(tmp_path: Path) -> None:
    matrices = "mamba.[a-z]*_proj_weight|conv1d|A_log"
    with pytest.raises(deltamend.UsageError, match=r"hold one weight, 'model\.layers\.1\.shared_transf\..*layers\.2\."):
        deltamend.repair(
            *pair(build("zamba"), tmp_path), tmp_path / "out", method="rank", parameters={"rank": 2}, output="adapter",
            exclude=matrices,
        )  # fmt: skip


@pytest.mark.slow
def test_a_head_of_another_name_is_not_taken_for_a_tied_one(tmp_path: Path) -> None:
    base, finetuned = pair(rwkv(), tmp_path)
    options: dict[str, Any] = {"method": "rank", "parameters": {"rank": 3}, "vectors": "base"}
    deltamend.repair(base, finetuned, tmp_path / "adapter", output="adapter", **options)
    deltamend.repair(base, finetuned, tmp_path / "checkpoint", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(hf.RwkvForCausalLM.from_pretrained(base), str(tmp_path / "adapter"))
    held = {key.replace(".default", "").replace(".modules_to_save", "") for key in model.state_dict()}
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys() <= held
    tokens = torch.arange(3, 13)[None]
    with torch.no_grad():
        expected = hf.RwkvForCausalLM.from_pretrained(tmp_path / "checkpoint")(input_ids=tokens).logits
        torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["tok_embeddings", "decoder"])
def test_an_adapter_unties_a_head_of_any_name_as_the_model_that_peft_runs(target: str, tmp_path: Path) -> None:
    """PEFT's merge, unlike the model it runs, adds the update to the weight that both share."""
    torch.manual_seed(0)
    model = modernbert().float().eval()
    model.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, of tied layers
        trained: Any = get_peft_model(model, LoraConfig(r=4, target_modules=[target], init_lora_weights=False)).eval()
        trained.save_pretrained(str(tmp_path / "adapter"))
    both = f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    deltamend.repair(tmp_path / "base", both, tmp_path / "out", method="none", out_dtype="fp32")
    found = hf.ModernBertForMaskedLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    tokens = torch.arange(3, 13)[None]
    with torch.no_grad():
        expected = trained(input_ids=tokens).logits
        torch.testing.assert_close(found(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-4)
    base, out = (load_file(tmp_path / side / "model.safetensors") for side in ("base", "out"))
    embedding = "model.embeddings.tok_embeddings.weight"
    for name in (embedding, "decoder.weight"):
        assert torch.equal(out[name], base[embedding]) == (target not in name)


@pytest.mark.parametrize("damaged", [[], {"a": 1}, 3])
def test_a_config_whose_model_type_is_no_text_is_read_by_the_names_of_its_tensors(
    damaged: object, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    base = body(random)
    folders = (
        write(tmp_path / "base", base, model_type=damaged),
        write(tmp_path / "finetuned", tuned(random, base), model_type=damaged),
    )
    deltamend.repair(*folders, tmp_path / "out", method="rank", parameters={"rank": 2}, output="adapter")
    factors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert factors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"].shape == (2, 32)
