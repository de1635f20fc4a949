"""What the parts of a GPTQ weight must say, and what the layouts are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deltamend.errors import CheckpointError
from deltamend.inputs.open_models import open_checkpoint
from tests.conftest import llama
from tests.inputs.quantised_formats.writers import gptq, words

NAME = "model.layers.0.mlp.up_proj"


def write(folder: Path, stored: dict[str, torch.Tensor], **config: Any) -> None:
    llama().config.save_pretrained(folder)
    save_file({f"{NAME}.{leaf}": part for leaf, part in stored.items()}, folder / "model.safetensors")
    path = folder / "config.json"
    said = {"quant_method": "gptq", "bits": 4, **config}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": said}))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_of_every_width_are_read(bits: int, tmp_path: Path) -> None:
    written = gptq(torch.randn(96, 64), bits=bits)
    write(tmp_path, written.stored, bits=bits)
    with open_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors[f"{NAME}.weight"]
        assert tensor.packing == f"int{bits}"
        assert np.array_equal(checkpoint.values(tensor, 0, 6144), written.values.numpy().reshape(-1))


def test_a_zero_point_past_the_greatest_code_is_0_as_in_autogptq(tmp_path: Path) -> None:
    written = gptq(torch.randn(32, 32))
    write(tmp_path, {**written.stored, "qzeros": words([[15] * 32], 4)})
    with open_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors[f"{NAME}.weight"]
        assert float(checkpoint.values(tensor, 0, tensor.elements).min()) >= 0.0  # codes are unsigned


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        ({}, {"checkpoint_format": "marlin"}, "GPTQ layout 'marlin'"),
        ({"g_idx": torch.full((64,), 2, dtype=torch.int32)}, {}, "names groups from 2 to 2, and there are 2"),
        ({"g_idx": torch.full((64,), -1, dtype=torch.int32)}, {}, "names groups from -1 to -1"),
        ({"qzeros": torch.zeros(2, 5, dtype=torch.int32)}, {}, "which do not fit"),
        ({"qweight": torch.zeros(8, 7, dtype=torch.int32)}, {}, "fits neither GPTQ nor AWQ"),
    ],
)
def test_what_cannot_be_read_is_refused(
    change: dict[str, torch.Tensor], config: dict[str, str], says: str, tmp_path: Path
) -> None:
    write(tmp_path, {**gptq(torch.randn(96, 64)).stored, **change}, **config)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path).close()


def test_other_layouts_of_awq_are_refused(tmp_path: Path) -> None:
    stored = {
        "qweight": torch.zeros(64, 12, dtype=torch.int32),
        "qzeros": torch.zeros(2, 12, dtype=torch.int32),
        "scales": torch.ones(2, 96, dtype=torch.float16),
    }
    write(tmp_path, stored, quant_method="awq", version="gemv")
    with pytest.raises(CheckpointError, match="AWQ layout 'gemv', and only 'gemm' can be read"):
        open_checkpoint(tmp_path).close()
