"""bitsandbytes' 4-bit weights, against bitsandbytes itself, and what its state must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltamend.errors import CheckpointError
from deltamend.inputs.open_models import open_checkpoint
from tests.conftest import gpt2, llama
from tests.inputs.quantised_formats.writers import FORMATS, nf4, write_quantised

STATE = "quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_values_equal_those_of_bitsandbytes_to_the_last_bit(
    kind: str, block: int, double: bool, storage: torch.dtype, tmp_path: Path
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    model = llama(torch.bfloat16)
    expected, stored = {}, {}
    for name, tensor in model.state_dict().items():
        if "proj" not in name:
            stored[name] = tensor
            continue
        codes, state = functional.quantize_4bit(
            tensor, blocksize=block, compress_statistics=double, quant_type=kind, quant_storage=storage
        )
        stored[name] = codes
        stored |= {f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}
        state.dtype = torch.float32  # the library's own values before they are rounded
        expected[name] = functional.dequantize_4bit(codes, state)
    model.config.save_pretrained(tmp_path)
    save_file(stored, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        for name, values in expected.items():
            tensor = checkpoint.tensors[name]
            ours = checkpoint.values(tensor, 0, tensor.elements).reshape(tensor.shape)
            assert np.array_equal(ours, values.numpy()), name
    assert len(expected) == 14


def test_a_conv1d_is_packed_transposed_and_shown_as_the_model_stores_it(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "transformer.h.0.mlp.c_fc.weight"
    written = nf4(tensors[name].T.contiguous())
    module = name.removesuffix("weight")
    save_file(tensors | {f"{module}{leaf}": part for leaf, part in written.stored.items()}, path)
    with open_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors[name]
        assert tensor.shape == tuple(tensors[name].shape) == (48, 192)
        values = checkpoint.values(tensor, 100, 5000)
        assert np.array_equal(values, written.values.T.reshape(-1)[100:5000].numpy())


def test_a_model_with_an_odd_number_of_entries_is_read_to_its_end(tmp_path: Path) -> None:
    weight = torch.randn(3, 7)
    written = nf4(torch.cat([weight.flatten(), torch.zeros(1)]), shape=(3, 7))
    llama().config.save_pretrained(tmp_path)
    save_file(
        {f"model.layers.0.mlp.up_proj.{leaf}": part for leaf, part in written.stored.items()},
        tmp_path / "model.safetensors",
    )
    with open_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
        assert tensor.shape == (3, 7)
        assert np.array_equal(checkpoint.values(tensor, 0, 21), written.values.reshape(-1)[:21].numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"blocksize": 63}, "says blocksize 63"),
        ({"blocksize": [64]}, r"says blocksize \[64\]"),
        ({"shape": [64, 65]}, "does not hold the 4160 codes"),
        ({"shape": [-1, 64]}, "no list of sizes"),
        ({"shape": [2**50, 2**50]}, "no list of sizes"),
        ({"shape": "64"}, "no list of sizes"),
        (b"\xff{", "holds no JSON"),
        (b"[1]", "holds no JSON object"),
        (b"[" * 4000, "holds no JSON"),
        (b" " * 5000, "is no short text"),
    ],
)
def test_a_state_that_cannot_be_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    llama(torch.float32).save_pretrained(tmp_path)
    write_quantised(tmp_path, FORMATS["nf4"])
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(STATE) and "q_proj" in name)
    text = (
        change
        if isinstance(change, bytes)
        else json.dumps({**json.loads(bytes(tensors[name].tolist())), **change}).encode()
    )
    tensors[name] = torch.tensor(list(text), dtype=torch.uint8)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path).close()


def test_nested_scales_need_their_numbers(tmp_path: Path) -> None:
    llama(torch.float32).save_pretrained(tmp_path)
    write_quantised(tmp_path, FORMATS["nf4"])
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(".absmax")]:
        tensors[name] = tensors[name].to(torch.uint8)
        tensors[name.replace("absmax", "nested_absmax")] = torch.ones(1)
        tensors[name.replace("absmax", "nested_quant_map")] = torch.linspace(-1, 1, 256)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="no nested_blocksize or nested_offset"):
        open_checkpoint(tmp_path).close()
