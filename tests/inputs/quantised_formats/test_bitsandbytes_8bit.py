"""LLM.int8, against bitsandbytes itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deltamend.errors import CheckpointError
from deltamend.inputs.open_models import open_checkpoint
from tests.conftest import gpt2, llama
from tests.inputs.quantised_formats.writers import int8_rows

NAME = "model.layers.0.mlp.up_proj"


def test_values_equal_those_of_bitsandbytes_to_the_last_bit(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, scales, _ = functional.int8_vectorwise_quant(torch.randn(160, 64).half())
    expected = functional.int8_vectorwise_dequant(codes, scales)
    llama().config.save_pretrained(tmp_path)
    save_file({f"{NAME}.weight": codes, f"{NAME}.SCB": scales}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors[f"{NAME}.weight"]
        ours = checkpoint.values(tensor, 0, tensor.elements).reshape(tensor.shape)
        assert np.array_equal(ours, expected.numpy())


def test_a_conv1d_is_shown_as_the_model_stores_it(tmp_path: Path) -> None:
    gpt2().config.save_pretrained(tmp_path)
    written = int8_rows(torch.randn(192, 48))
    module = "transformer.h.0.mlp.c_fc"
    save_file({f"{module}.{leaf}": part for leaf, part in written.stored.items()}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors[f"{module}.weight"]
        assert tensor.shape == (48, 192)
        assert np.array_equal(checkpoint.values(tensor, 0, 9216), written.values.T.reshape(-1).numpy())


def test_codes_laid_out_for_one_kind_of_gpu_are_refused(tmp_path: Path) -> None:
    llama().config.save_pretrained(tmp_path)
    written = int8_rows(torch.randn(160, 64))
    stored = {**written.stored, "weight_format": torch.tensor(2, dtype=torch.uint8)}
    save_file({f"{NAME}.{leaf}": part for leaf, part in stored.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"up_proj.weight_format' says that the codes are not stored row by row"):
        open_checkpoint(tmp_path).close()
