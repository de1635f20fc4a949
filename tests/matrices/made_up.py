"""Small tensors and pairs of tensors for the tests of matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.inputs.pairing import Submatrix, TensorPair


def write_checkpoint(folder: Path, **tensors: np.ndarray) -> Path:
    """A folder that opens as a checkpoint and holds these tensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def pair_of_shape(
    name: str, shape: tuple[int, ...], *, parts: tuple[Submatrix, ...] = (), action: str = "filter", rows: int = -1
) -> TensorPair:
    """A tensor of fp32 that both sides have, without any values."""
    stored = StoredTensor(name, "F32", shape, "model.safetensors", 0, 4 * int(np.prod(shape)))
    return TensorPair(stored, stored, action, "", shape[0] if rows < 0 else rows, parts)  # type: ignore[arg-type]
