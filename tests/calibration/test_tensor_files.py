"""Files of a calibration have the same bytes each time, and safetensors reads them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from deltamend.calibration.tensor_files import write_tensors


def test_a_file_has_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        "b": torch.randn(3, 4).T,
        "a": torch.randn(5),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 2),
    }
    metadata = {f"key {number}": str(number) for number in range(20)}
    contents = set()
    for number in range(4):
        turned = dict(sorted(metadata.items(), key=lambda pair: (pair[0][-1], pair), reverse=bool(number % 2)))
        write_tensors(dict(reversed(tensors.items())) if number > 1 else tensors, tmp_path / "x", turned)
        contents.add((tmp_path / "x").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "x", "pt") as opened:
        assert opened.metadata() == metadata
        assert set(opened.keys()) == set(tensors)
        assert all(torch.equal(opened.get_tensor(name), tensor) for name, tensor in tensors.items())
