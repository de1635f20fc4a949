"""Tiny models of the architectures that the paper's study fine-tunes, made from configs in a second."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from tests.conftest import Pair, fine_tune
from tests.evaluation.conftest import save_tokenizer

_QWEN_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,  # three of linear attention, one of full attention
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,  # with less, a tied model repeats the last token for ever
    "eos_token_id": 2,
}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "patch_size": 4,
}
_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,  # with less, a tied model repeats the last token for ever
    "eos_token_id": [2, 1],
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def qwen(vocabulary: int) -> PreTrainedModel:
    """Qwen3.5 as the hub holds it: with eyes, and three layers of linear attention to one of full attention."""
    text = {**_QWEN_TEXT, "vocab_size": vocabulary}
    model = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config=text, vision_config=dict(_QWEN_VISION), tie_word_embeddings=True)
    ).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):  # the state's decay stays in fp32
            parameter.data = parameter.data.float()
    return model


def llama32(vocabulary: int) -> PreTrainedModel:
    """Llama 3.2: tied embeddings, scaled rotary positions."""
    return LlamaForCausalLM(LlamaConfig(**_LLAMA, vocab_size=vocabulary)).to(torch.bfloat16)


STAND_INS = {"qwen3.5-4b": qwen, "llama-3.2-3b": llama32}
"""By the names that the study gives its models."""


def save_stand_in(name: str, folder: Path) -> Path:
    """Write a model with fresh weights in bf16, and a tokenizer of bytes with a chat template."""
    torch.manual_seed(0)
    STAND_INS[name](save_tokenizer(folder)).save_pretrained(folder)
    return folder


def stand_in_pair(name: str, folder: Path) -> Pair:
    """A base, and a descendant that was loaded, changed and saved the way fine-tuning does."""
    base = save_stand_in(name, folder / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    fine_tune(model)
    model.save_pretrained(folder / "finetuned")
    save_tokenizer(folder / "finetuned")
    return Pair(base, folder / "finetuned")
