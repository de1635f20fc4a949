"""Find the tensors inside a PyTorch .bin file, so that they are read like those of a safetensors file.

The file is a zip archive of a pickle and of one uncompressed member for each storage. The pickle is read by
`torch.load(weights_only=True)`, which builds tensors and plain containers and nothing else: a pickle that would run code
is refused. Under a fake tensor mode no data is read, and each storage knows its place in the file.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from deltamend.checkpoint.safetensors_header import Header, HeaderEntry
from deltamend.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "torch.bool": "BOOL",
    "torch.uint8": "U8",
    "torch.int8": "I8",
    "torch.int16": "I16",
    "torch.int32": "I32",
    "torch.int64": "I64",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float32": "F32",
    "torch.float64": "F64",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
}


def read_torch_header(path: Path) -> Header:
    """The tensors of a `torch.save` file of a state dict, in the order of their bytes.

    Raises:
        CheckpointError: it is no such file, would run code, is in the format of before PyTorch 1.6, or holds something else
            than contiguous tensors under names.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    _check_archive(path)
    try:
        with FakeTensorMode():
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: its pickle asks for more than tensors and would run code; do not use this checkpoint"
        ) from error
    except Exception as error:  # damaged bytes make the unpickler raise of all kinds
        raise CheckpointError(
            f"{path}: cannot be read as a PyTorch file ({type(error).__name__}); download it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path}: holds something other than tensors under names; save the model's state dict alone"
        )
    size = path.stat().st_size
    entries = [_entry(path, name, tensor, size) for name, tensor in state.items()]
    return Header(tuple(sorted(entries, key=lambda entry: (entry.start, entry.name))), {"format": "pt"}, b"")


def _check_archive(path: Path) -> None:
    """Refuse what is no zip archive of uncompressed members in this machine's byte order."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            orders = [member for member in members if member.filename.endswith("/byteorder") and member.file_size < 16]
            order = archive.read(orders[0]) if stored and orders else b"little"
    except Exception as error:  # zipfile raises of all kinds on damaged names and directories
        raise CheckpointError(
            f"{path}: not a PyTorch file of version 1.6 or later, or truncated; save it as safetensors with save_pretrained"
        ) from error
    if not stored or order != b"little":
        raise CheckpointError(f"{path}: compressed or big-endian; save it as safetensors with save_pretrained")


def _entry(path: Path, name: object, tensor: torch.Tensor, size: int) -> HeaderEntry:
    """Where one tensor lies, checked against the file."""
    if not isinstance(name, str) or not name.isprintable():
        raise CheckpointError(f"{path}: tensor name {name!r} is no printable text; do not use this checkpoint")
    dtype = _DTYPES.get(str(tensor.dtype))
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {tensor.dtype}, which deltamend cannot read; give it unquantised weights"
        )
    if tensor.is_neg() or tensor.is_conj() or (tensor.numel() and not tensor.is_contiguous()):
        raise CheckpointError(
            f"{path}: tensor {name!r} is stored transposed; save it as safetensors with save_pretrained"
        )
    offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if not isinstance(offset, int):
        raise CheckpointError(
            f"{path}: tensor {name!r} is not stored in this file; save it as safetensors with save_pretrained"
        )
    start = offset + int(tensor.storage_offset()) * tensor.element_size()
    stop = start + tensor.numel() * tensor.element_size()
    if not 0 <= start <= stop <= size:
        raise CheckpointError(f"{path}: truncated inside tensor {name!r}; download it again")
    return HeaderEntry(name, dtype, tuple(tensor.shape), start, stop)
