"""An adapter to a multimodal BASE from its language model alone, as transformers loads and saves that part."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

import deltamend
from tests.inputs.architectures import build

TOKENS = torch.arange(3, 13)[None]


def test_the_language_model_alone_gives_an_adapter_to_the_whole_model(tmp_path: Path) -> None:
    whole: Any = build("llava")
    whole.save_pretrained(tmp_path / "base")
    tuned = LlamaForCausalLM(whole.config.text_config).eval()
    tuned.model.load_state_dict(whole.model.language_model.state_dict())
    tuned.lm_head.load_state_dict(whole.lm_head.state_dict())
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("proj.weight"):
                parameter += 0.02 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "finetuned")
    sides, options = (tmp_path / "base", tmp_path / "finetuned"), {"method": "rank", "parameters": {"rank": 4}}
    deltamend.repair(*sides, tmp_path / "checkpoint", **options)  # type: ignore[arg-type]
    deltamend.repair(*sides, tmp_path / "adapter", output="adapter", **options)  # type: ignore[arg-type]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft's own
        adapted: Any = PeftModel.from_pretrained(whole, str(tmp_path / "adapter")).eval()
        expected = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint").eval()(input_ids=TOKENS).logits
        torch.testing.assert_close(adapted(input_ids=TOKENS).logits, expected, rtol=1e-4, atol=1e-5)
