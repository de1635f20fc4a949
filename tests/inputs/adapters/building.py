"""Adapters that PEFT made, and what PEFT itself makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

import deltamend
from deltamend.matrices.buffers import Buffers
from deltamend.matrices.views import StoredMatrix
from tests.conftest import Pair


def adapted(tmp_path: Path, model: PreTrainedModel, **options: Any) -> Pair:
    """A base and an adapter for it, with noise in all that is trained so that it counts."""
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    adapter = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **options}))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens")):
                parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter.dtype))
    adapter.save_pretrained(str(tmp_path / "adapter"))
    return Pair(tmp_path / "base", tmp_path / "adapter")


def merged(
    pair: Pair, dtype: torch.dtype = torch.float64, auto: Any = AutoModelForCausalLM, **options: Any
) -> dict[str, torch.Tensor]:
    """What PEFT makes of it."""
    model = auto.from_pretrained(pair.base, dtype=dtype)
    return dict(PeftModel.from_pretrained(model, pair.finetuned, **options).merge_and_unload().state_dict())


def shown(spec: str) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a model as deltamend reads it."""
    with deltamend.open_checkpoint(spec) as checkpoint:
        return {
            name: StoredMatrix(checkpoint, tensor, Buffers(), "t")
            .rows(0, StoredMatrix.view_shape(tensor)[0])
            .astype(np.float64)
            .reshape(tensor.shape)
            for name, tensor in checkpoint.tensors.items()
        }
