"""Checkpoints as people have them, small; and what a repair of one has to give, by a float64 SVD."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.conftest import Printed, fine_tune
from tests.reference import dg_hard

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


Cli = Callable[..., Printed]


def qwen3() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=12, tie_word_embeddings=True))


def gemma() -> PreTrainedModel:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=12, tie_word_embeddings=True))


def mixtral() -> PreTrainedModel:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=3))


def qwen3_moe() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SMALL, head_dim=12, num_experts=3, moe_intermediate_size=40, num_experts_per_tok=2)
    )


def neox() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=1, num_attention_heads=4, vocab_size=100)
    )


def phi3() -> PreTrainedModel:
    torch.manual_seed(0)
    return Phi3ForCausalLM(Phi3Config(**SMALL, pad_token_id=0, eos_token_id=1, bos_token_id=2))


def tuned(model: PreTrainedModel) -> PreTrainedModel:
    """The model fine-tuned, experts included."""
    fine_tune(model)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.ndim == 3:
                generator = torch.Generator().manual_seed(number)
                left = torch.randn(*parameter.shape[:2], 2, generator=generator)
                parameter += 5e-2 * left @ torch.randn(parameter.shape[0], 2, parameter.shape[2], generator=generator)
    return model


def check(pair_tensors: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]], out: dict[str, torch.Tensor]) -> int:
    """Compare every matrix of OUT, given as two-dimensional tensors by name, with the float64 filter; how many there were."""
    base, finetuned = pair_tensors
    matrices = 0
    for name, tensor in out.items():
        before, after = base[name].double().numpy(), tensor.double().numpy()
        if tensor.ndim != 2:
            assert torch.equal(tensor, finetuned[name])
            continue
        expected, _ = dg_hard(finetuned[name].double().numpy() - before)
        rounding = 2**-23 * np.linalg.norm(before + expected)
        assert np.linalg.norm(after - before - expected) < 1e-5 * np.linalg.norm(expected) + rounding, name
        matrices += 1
    return matrices


def renamed(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def tokenizer(folder: Path, tokens: list[str]) -> None:
    """The part of a tokenizer.json that numbers tokens."""
    half = len(tokens) // 2
    content = {
        "model": {"vocab": {token: row for row, token in enumerate(tokens[:half])}},
        "added_tokens": [{"content": token, "id": row} for row, token in enumerate(tokens) if row >= half],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


def wrap_config(folder: Path) -> None:
    """Change the config of a text model into that of a multimodal one around it."""
    config = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "seeing", "architectures": ["SeeingForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(whole))
