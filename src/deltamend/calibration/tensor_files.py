"""Write tensors to a safetensors file that has the same bytes each time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.checkpoint.safetensors_header import encode_header
from deltamend.machine.atomic import whole_file

if TYPE_CHECKING:
    import torch


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a file, whole or not at all. safetensors itself writes the metadata in another order each time.

    Args:
        tensors: of a dtype that numpy has, by name; they are stored in the order of their names.
        path: the file.
        metadata: of the file.

    Raises:
        OutputError: the file cannot be written.
    """
    dtypes = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
    arrays = {name: tensors[name].contiguous().numpy() for name in sorted(tensors)}
    header, _ = encode_header(
        [(name, dtypes[array.dtype], array.shape) for name, array in arrays.items()], dict(sorted(metadata.items()))
    )
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for array in arrays.values():
            file.write(array.data)
