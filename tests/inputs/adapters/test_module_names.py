"""Adapters that PEFT trained on models whose tensors have other names in memory than in the files."""

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
from tests.inputs.architectures import MULTIMODAL, VOCABULARY, build

TOKENS = torch.arange(3, 13)[None]


def adapted(name: str, folder: Path, **options: Any) -> Any:
    """A model that PEFT adapted, saved as a base and an adapter."""
    build(name).save_pretrained(folder / "base")
    given: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    base = type(build(name)).from_pretrained(folder / "base", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft's own
        warnings.filterwarnings("ignore", ".*ensure_weight_tying", UserWarning)
        model: Any = get_peft_model(base, LoraConfig(**(given | options)))
    with torch.no_grad():
        for parameter, values in model.named_parameters():
            if "lora_" in parameter or "modules_to_save" in parameter:
                values.add_(0.1 * torch.randn_like(values))
    model.save_pretrained(str(folder / "adapter"))
    return model.eval()


def assert_same_logits(name: str, model: Any, folder: Path) -> None:
    found, report = type(build(name)).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        expected, got = model(input_ids=TOKENS).logits, found.eval()(input_ids=TOKENS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MULTIMODAL)
def test_an_adapter_trained_in_memory_is_read(name: str, tmp_path: Path) -> None:
    model = adapted(name, tmp_path)
    sides = tmp_path / "base", f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    deltamend.repair(*sides, tmp_path / "out", method="none", out_dtype="fp32")
    assert_same_logits(name, model, tmp_path / "out")
    stored = load_file(tmp_path / "base" / "model.safetensors").keys()
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == stored


@pytest.mark.slow
def test_patterns_and_whole_modules_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    pattern = r"model\.language_model\.layers\.1\.mlp\.down_proj"
    model = adapted("llava", tmp_path, alpha_pattern={pattern: 32}, modules_to_save=["lm_head", "linear_1"])
    both = f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    deltamend.repair(tmp_path / "base", both, tmp_path / "out", method="none", out_dtype="fp32")
    assert_same_logits("llava", model, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "paligemma", "llava"])
def test_an_adapter_by_the_names_of_the_files_is_read_as_before(name: str, tmp_path: Path) -> None:
    """It brings a whole embedding, which unties the head where that is tied, and leaves it alone where it is not."""
    model = adapted(name, tmp_path, modules_to_save=["embed_tokens"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    changes = {
        "model.model.language_model.": "model.language_model.model.",
        "model.model.vision_tower.": "model.vision_tower.",
    }
    renamed = {}
    for key, value in load_file(file).items():
        for old, new in changes.items():
            key = key.replace(old, new)
        renamed[key] = value
    save_file(renamed, file)
    both = f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    deltamend.repair(tmp_path / "base", both, tmp_path / "out", method="none", out_dtype="fp32")
    assert_same_logits(name, model, tmp_path / "out")
    names, stored = (load_file(tmp_path / side / "model.safetensors").keys() for side in ("out", "base"))
    assert names - stored == ({"language_model.lm_head.weight"} - stored)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_more_tokens_are_written_where_a_part_of_the_config_states_their_number(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path / "base")
    model.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, of tied layers and gradient checkpointing
        saved = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
        trained: Any = get_peft_model(model, saved)
    trained.save_pretrained(str(tmp_path / "adapter"))
    sides = tmp_path / "base", f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    deltamend.repair(*sides, tmp_path / "out", method="none", out_dtype="fp32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["vocab_size"] == VOCABULARY + 3
    assert_same_logits(name, trained.eval(), tmp_path / "out")


@pytest.mark.slow
def test_the_error_says_which_names_differ(tmp_path: Path) -> None:
    adapted("gemma3", tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key.replace("down_proj", "down_projection"): value for key, value in load_file(file).items()}, file)
    with pytest.raises(
        deltamend.CheckpointError, match=r"down_projection' does not fit the model: .* nearest to it is '.*\.down_proj'"
    ):
        deltamend.repair(tmp_path / "base", f"{tmp_path / 'base'}+{tmp_path / 'adapter'}", tmp_path / "out")


@pytest.mark.slow
def test_what_is_repaired_of_it_can_be_written_as_an_adapter_again(tmp_path: Path) -> None:
    adapted("qwen2_5_vl", tmp_path)
    sides = tmp_path / "base", f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    deltamend.repair(*sides, tmp_path / "again", method="rank", parameters={"rank": 4}, output="adapter")
    given, found = (load_file(tmp_path / side / "adapter_model.safetensors") for side in ("adapter", "again"))
    assert found.keys() == given.keys()
