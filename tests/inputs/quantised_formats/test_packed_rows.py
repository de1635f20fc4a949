"""Packed integers of compressed-tensors, against compressed-tensors itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deltamend.errors import CheckpointError
from deltamend.inputs.open_models import open_checkpoint
from tests.conftest import llama
from tests.inputs.quantised_formats.writers import packed_int4

NAME = "model.layers.0.mlp.up_proj"


def values_of(folder: Path, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    llama().config.save_pretrained(folder)
    save_file({f"{NAME}.{leaf}": part for leaf, part in stored.items()}, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        tensor = checkpoint.tensors[f"{NAME}.weight"]
        return torch.from_numpy(checkpoint.values(tensor, 0, tensor.elements).reshape(tensor.shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("strategy", "size"), [("group", 32), ("group", 16), ("channel", None)])
@pytest.mark.parametrize("bits", [4, 8])
def test_values_equal_those_of_compressed_tensors(
    bits: int, strategy: str, size: int | None, symmetric: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args: dict[str, Any] = {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": symmetric}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args, group_size=size))
    weight = torch.randn(72, 96, dtype=dtype)
    groups = 1 if size is None else 96 // size
    scale = (weight.float().reshape(72, groups, -1).abs().amax(dim=2) / 2 ** (bits - 1)).to(dtype)
    state = {"weight": weight, "weight_scale": scale}
    if not symmetric:
        state["weight_zero_point"] = torch.randint(-3, 4, scale.shape, dtype=torch.int8)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    stored = compressor.compress(state, scheme)
    ours = values_of(tmp_path, stored)
    # The library rounds to the dtype of the scales; before that rounding the product is exact in fp32.
    assert torch.equal(ours.to(dtype), compressor.decompress(stored, scheme)["weight"])


def test_columns_sorted_by_activation_are_read_with_the_scales_of_their_groups(tmp_path: Path) -> None:
    weight = torch.randn(48, 64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    written = packed_int4(weight[:, order], symmetric=False)
    group_of = torch.empty(64, dtype=torch.int32)
    group_of[order] = torch.arange(64, dtype=torch.int32) // 32
    # Codes lie where the columns are, and the groups are those of the sorted columns.
    back = torch.argsort(order)
    codes = torch.stack([(written.stored["weight_packed"] >> (4 * place)) & 15 for place in range(8)], dim=2).reshape(
        48, 64
    )
    moved = codes[:, back].reshape(48, 8, 8)
    packed = sum((moved[:, :, place].long() << (4 * place) for place in range(8)), torch.zeros(48, 8, dtype=torch.long))
    stored = {**written.stored, "weight_packed": packed.to(torch.int32), "weight_g_idx": group_of}
    assert torch.equal(values_of(tmp_path / "sorted", stored), written.values[:, back])
    unused = {**written.stored, "weight_g_idx": torch.full((64,), -1, dtype=torch.int32)}
    assert torch.equal(values_of(tmp_path / "unused", unused), written.values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight_shape": torch.tensor([48, 640])}, r"holds no \[48, 640\] integers"),
        ({"weight_shape": torch.tensor([-1, 64])}, "says the shape is"),
        ({"weight_scale": torch.ones(48, 3)}, "3 groups, which do not divide 64 columns"),
        ({"weight_scale": torch.ones(47, 2)}, "does not fit a weight"),
        ({"weight_g_idx": torch.full((64,), 7, dtype=torch.int32)}, "names group 7, and there are 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, torch.Tensor], says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says):
        values_of(tmp_path, {**packed_int4(torch.randn(48, 64)).stored, **change})


def test_any_rows_can_be_read(tmp_path: Path) -> None:
    written = packed_int4(torch.randn(50, 64), symmetric=False)
    values_of(tmp_path, written.stored)
    with open_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors[f"{NAME}.weight"]
        for first in range(50):
            row = checkpoint.values(tensor, first * 64, first * 64 + 64)
            assert np.array_equal(row, written.values[first].numpy())
