"""What is held of weights that are stored transposed: one weight a thread, whatever the size of the model."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from deltamend.inputs.open_models import open_checkpoint
from tests.conftest import llama
from tests.inputs.quantised_formats.writers import gptq

SIDE, WEIGHTS = 512, 12


def write_model(folder: Path) -> None:
    """Twelve GPTQ weights of 512×512: half a byte an entry, and 128 KiB of codes each."""
    stored = gptq(torch.randn(SIDE, SIDE), size=128).stored
    llama().config.save_pretrained(folder)
    names = [f"model.layers.{number}.mlp.up_proj" for number in range(WEIGHTS)]
    save_file(
        {f"{name}.{leaf}": part.clone() for name in names for leaf, part in stored.items()},
        folder / "model.safetensors",
    )


def test_memory_does_not_grow_with_the_number_of_weights(tmp_path: Path) -> None:
    write_model(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        tensors = list(checkpoint.tensors.values())
        row = np.empty(8 * SIDE, np.float32)
        held = []
        tracemalloc.start()
        try:
            for tensor in tensors:
                checkpoint.read_into(tensor, 0, row.view(np.uint8).data)
                held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    codes = SIDE * SIDE // 2
    assert held[0] > codes
    assert max(held) < held[0] + codes // 4  # another weight takes the place of the first
    assert held[-1] < 2 * codes


def test_threads_read_the_same_values_side_by_side(tmp_path: Path) -> None:
    write_model(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        tensors = list(checkpoint.tensors.values())
        expected = checkpoint.values(tensors[0], 0, SIDE * SIDE)
        same: list[bool] = []

        def read(first: int) -> None:
            for step in range(2 * WEIGHTS):
                start = (first + step) * 999
                values = checkpoint.values(tensors[(first + step) % WEIGHTS], start, start + 5000)
                same.append(np.array_equal(values, expected[start : start + 5000]))

        threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert same == [True] * (8 * WEIGHTS)
