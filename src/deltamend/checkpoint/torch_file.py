"""Find the tensors of a state dict inside a PyTorch .bin file, so that they are read like those of a safetensors file."""

from __future__ import annotations

from pathlib import Path

from deltamend.checkpoint.dtypes import NUMPY_DTYPES, itemsize
from deltamend.checkpoint.safetensors_header import Header, HeaderEntry
from deltamend.checkpoint.tensor_rules import fault_of_tensor
from deltamend.checkpoint.torch_archive import ArchivedTensor, read_torch_archive
from deltamend.errors import CheckpointError


def read_torch_header(path: Path) -> Header:
    """The tensors of a `torch.save` file of a state dict, in the order of their bytes.

    Raises:
        CheckpointError: it is no such file, would run code, is in the format of before PyTorch 1.6, or holds something else
            than contiguous tensors under names.
    """
    state = read_torch_archive(path)
    if not isinstance(state, dict) or not all(isinstance(value, ArchivedTensor) for value in state.values()):
        raise CheckpointError(
            f"{path}: holds something other than tensors under names; save the model's state dict alone"
        )
    entries = [_entry(path, name, tensor) for name, tensor in state.items()]
    return Header(tuple(sorted(entries, key=lambda entry: (entry.start, entry.name))), {"format": "pt"}, b"")


def _entry(path: Path, name: object, tensor: ArchivedTensor) -> HeaderEntry:
    """Where one tensor lies, checked."""
    if tensor.dtype not in NUMPY_DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {tensor.dtype}, which deltamend cannot read; give it unquantised weights"
        )
    if (fault := fault_of_tensor(name, tensor.shape, itemsize(tensor.dtype))) or not isinstance(name, str):
        raise CheckpointError(f"{path}: tensor {str(name)[:60]!a} cannot be read ({fault}); do not use this checkpoint")
    if not tensor.contiguous:
        raise CheckpointError(
            f"{path}: tensor {name!r} is stored transposed; save it as safetensors with save_pretrained"
        )
    return HeaderEntry(name, tensor.dtype, tensor.shape, tensor.start, tensor.stop)
