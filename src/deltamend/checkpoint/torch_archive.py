"""Find the tensors inside what torch.save wrote, which may be any structure and lie anywhere in a file, without running it.

`torch_file` reads state dicts by torch itself. This reader is for files whose pickles name classes that torch refuses, such as
DeepSpeed's, and for archives that are part of a larger file, such as those of torch.distributed.checkpoint. It builds
dictionaries, lists and numbers; tensors become `ArchivedTensor`s, and classes that the caller expects become inert records.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from deltamend.checkpoint.dtypes import itemsize
from deltamend.checkpoint.inert_pickle import ForbiddenNameError, read_inert
from deltamend.errors import CheckpointError

TORCH_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "float16": "F16",
    "bfloat16": "BF16", "float32": "F32", "float64": "F64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""The safetensors name of a dtype, by torch's."""
_STORAGES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16", "IntStorage": "int32",
    "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16", "FloatStorage": "float32",
    "DoubleStorage": "float64",
}  # fmt: skip
_LARGEST_PICKLE = 1 << 30


@dataclass(frozen=True)
class ArchivedTensor:
    """A tensor of an archive.

    Attributes:
        dtype: by its safetensors name; of one that has none, torch's.
        shape: its shape.
        start: its first byte in the file.
        stop: the byte after its last.
        contiguous: whether its entries lie row by row without gaps.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    contiguous: bool


class _Storage(NamedTuple):
    """A storage: its dtype by torch's name, or None if it is untyped; and the name of its member."""

    dtype: str | None
    member: str


class _Part(io.RawIOBase):
    """Part of a file, as a file."""

    def __init__(self, descriptor: int, start: int, stop: int) -> None:
        self._descriptor, self._start, self._size, self._at = descriptor, start, stop - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("before the start of the file")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        data = os.pread(self._descriptor, count, self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_torch_archive(path: Path, span: tuple[int, int] | None = None, inert: tuple[str, ...] = ()) -> Any:
    """What torch.save wrote, with an `ArchivedTensor` for each tensor.

    Args:
        path: the file.
        span: the bytes [start, stop) of the archive; None for the whole file.
        inert: classes that become inert records; see `read_inert`.

    Raises:
        CheckpointError: it is no such archive, is damaged or compressed, or its pickle names something else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be opened ({error.strerror}); check the path and its permissions"
        ) from error
    try:
        start, stop = span or (0, os.fstat(descriptor).st_size)
        return _read(descriptor, start, stop, inert)
    except ForbiddenNameError as error:
        raise CheckpointError(
            f"{path}: its pickle asks for {str(error)!a}, which holds no weights and could run code; do not use this checkpoint"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make zipfile and the unpickler raise of all kinds
        raise CheckpointError(
            f"{path}: cannot be read as a PyTorch file ({type(error).__name__}: {str(error)[:80]!a}); copy it again"
        ) from error
    finally:
        os.close(descriptor)


def _read(descriptor: int, start: int, stop: int, inert: tuple[str, ...]) -> Any:
    file = _Part(descriptor, start, stop)
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise pickle.UnpicklingError("compressed")
        pickled = next(name for name in members if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        order = members.get(f"{folder}byteorder")
        if order is not None and order.file_size < 16 and archive.read(order) != b"little":
            raise pickle.UnpicklingError("big-endian")
        if members[pickled].file_size > _LARGEST_PICKLE:
            raise pickle.UnpicklingError("a pickle of more than 1 GiB")
        data = archive.read(pickled)
    placed = _Placed(descriptor, start, stop, folder, members)
    return read_inert(data, placed.functions(), inert, placed.storage)


@dataclass(frozen=True)
class _Placed:
    """Makes tensors of the storages of one archive."""

    descriptor: int
    start: int
    stop: int
    folder: str
    members: dict[str, zipfile.ZipInfo]

    def functions(self) -> dict[str, object]:
        """The functions of torch's own pickles."""
        return {
            "collections.OrderedDict": OrderedDict,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v3": lambda *found: self.tensor(*found[:4], dtype=found[6]),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch.storage.UntypedStorage": None,
            **{f"torch.{name}": name for name in TORCH_DTYPES},
            **{f"torch.{name}": dtype for name, dtype in _STORAGES.items()},
        }

    def storage(self, identity: Any) -> _Storage:
        """What stands for a storage: ("storage", its type, the name of its member, its device, its length)."""
        kind, dtype, key = identity[:3]
        if kind != "storage" or not isinstance(key, str) or not (dtype is None or isinstance(dtype, str)):
            raise pickle.UnpicklingError("no storage")
        return _Storage(dtype, f"{self.folder}data/{key}")

    def tensor(
        self,
        storage: _Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *_: object,
        dtype: Any = None,
    ) -> ArchivedTensor:
        """Where a tensor lies, checked against the member that holds its storage."""
        name = TORCH_DTYPES.get(str(dtype or storage.dtype), str(dtype or storage.dtype))
        size = itemsize(name)
        expected = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        contiguous = all(
            length == 1 or stride == wanted for length, stride, wanted in zip(shape, strides, expected, strict=True)
        )
        member = self.members[storage.member]
        begin = self._data_of(member) + offset * size
        end = begin + math.prod(shape) * size
        if any(type(length) is not int or length < 0 for length in (offset, *shape)):
            raise pickle.UnpicklingError("a tensor of no size")
        if contiguous and not (offset + math.prod(shape)) * size <= member.file_size:
            raise pickle.UnpicklingError("a tensor larger than its storage")
        if not self.start <= begin <= self.stop or (contiguous and end > self.stop):
            raise pickle.UnpicklingError("a tensor outside its archive")
        return ArchivedTensor(name, tuple(shape), begin, end, contiguous or math.prod(shape) == 0)

    def _data_of(self, member: zipfile.ZipInfo) -> int:
        """The first byte of a member's data in the file: behind its local header, whose last fields are two lengths."""
        header = self.start + member.header_offset
        fields = os.pread(self.descriptor, 30, header)
        if len(fields) != 30 or fields[:4] != b"PK\x03\x04":
            raise pickle.UnpicklingError("a member without a header")
        name, extra = struct.unpack("<HH", fields[26:30])
        return header + 30 + int(name) + int(extra)
