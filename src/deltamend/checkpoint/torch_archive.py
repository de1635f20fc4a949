"""Find the tensors inside what torch.save wrote, which may be any structure and lie anywhere in a file, without running it.

It is a zip archive of a pickle and of one uncompressed member for each storage. The pickle is read without torch: it makes
dictionaries, lists and numbers; tensors become `ArchivedTensor`s, and classes that the caller expects become inert records.
Where a storage lies, and how long it is, is taken from the directory of the archive; torch, under a mode that reads no data,
guesses it from the order in which torch.save writes, and crashes on members that torch.save does not write.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from deltamend.checkpoint.dtypes import NUMPY_DTYPES, itemsize
from deltamend.checkpoint.inert_pickle import ForbiddenNameError, ordered_dict, read_inert
from deltamend.checkpoint.tensor_rules import MAX_DIMENSIONS
from deltamend.errors import CheckpointError
from deltamend.machine.regular_files import open_regular, reason

TORCH_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""The safetensors name of a dtype, by torch's."""
_STORAGES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16", "IntStorage": "int32",
    "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16", "FloatStorage": "float32",
    "DoubleStorage": "float64", "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}  # fmt: skip
_OTHER_DTYPES = (
    "complex32", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2", "qint8", "quint8",
    "qint32", "quint4x2", "quint2x4",
)  # fmt: skip
"""Those that safetensors has no name for, or that nothing can be computed with."""
_OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "sparse", "_rebuild_sparse_csr_tensor": "sparse", "_rebuild_qtensor": "quantised by torch",
    "_rebuild_nested_tensor": "nested", "_rebuild_wrapper_subclass": "of a class of its own",
    "_rebuild_meta_tensor_no_storage": "without values (on the device meta)",
    "_rebuild_device_tensor_from_numpy": "of a device of its own", "_rebuild_device_tensor_from_cpu_tensor": "of a device of its own",
}  # fmt: skip
"""What torch calls the tensors that do not lie in one storage."""
_LARGEST_PICKLE = 1 << 30
_ORDER = b"little"
_LOCAL_HEADER, _ENCRYPTED, _UTF_8 = 30, 0x1, 0x800
"""Of the zip format: bytes of a local header without its name, and two of its flags."""


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

    def __setstate__(self, state: object) -> None:
        """A pickle may not change a tensor after it was checked."""
        raise pickle.UnpicklingError("a tensor that is given a state")


class UnreadableArchiveError(pickle.UnpicklingError):
    """An archive that torch can read and this reader cannot; the text says why."""


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
        descriptor = open_regular(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error
    try:
        start, stop = span or (0, os.fstat(descriptor).st_size)
        return _read(descriptor, start, stop, inert)
    except ForbiddenNameError as error:
        raise CheckpointError(
            f"{path}: its pickle asks for '{ascii(str(error))[1:-1]}', which holds no weights and would run code; do not use this checkpoint"
        ) from error
    except UnreadableArchiveError as error:
        raise CheckpointError(
            f"{path}: {error}, which deltamend cannot read; save it as safetensors with save_pretrained"
        ) from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path}: not a PyTorch file of version 1.6 or later, or truncated; copy it again, or save it as safetensors with save_pretrained"
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
    with zipfile.ZipFile(_Part(descriptor, start, stop)) as archive:
        members = _members(archive)
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError(f"{len(pickles)} pickles")
        folder = pickles[0].removesuffix("data.pkl")
        order = members.get(f"{folder}byteorder")
        if order is not None and (order.file_size != len(_ORDER) or archive.read(order) != _ORDER):
            raise UnreadableArchiveError("is big-endian")
        if members[pickles[0]].file_size > _LARGEST_PICKLE:
            raise pickle.UnpicklingError("a pickle of more than 1 GiB")
        data = archive.read(pickles[0])
    spans = _spans(descriptor, start, stop, members)
    placed = _Placed(folder, spans)
    return read_inert(data, placed.functions(), inert, placed.storage)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by name, as the directory lists them: each once, neither compressed nor encrypted."""
    listed = archive.infolist()
    members = {member.filename: member for member in listed}
    if len(members) != len(listed):
        raise pickle.UnpicklingError("a member twice")
    for member in listed:
        plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & _ENCRYPTED
        if not plain or member.compress_size != member.file_size:
            raise UnreadableArchiveError("is compressed or encrypted")
    return members


def _spans(
    descriptor: int, start: int, stop: int, members: Mapping[str, zipfile.ZipInfo]
) -> dict[str, tuple[int, int]]:
    """The bytes [first, last) of each member's data in the file, which overlap nowhere, by the name of the member."""
    spans = {}
    end = start
    for member in sorted(members.values(), key=lambda member: member.header_offset):
        first = _data_of(descriptor, start + member.header_offset, member)
        last = first + member.file_size
        if start + member.header_offset < end or last > stop:
            raise pickle.UnpicklingError("members that overlap or leave the archive")
        spans[member.filename], end = (first, last), last
    return spans


def _data_of(descriptor: int, header: int, member: zipfile.ZipInfo) -> int:
    """The first byte of a member's data: behind its local header, which has to name the same member as the directory."""
    fields = os.pread(descriptor, _LOCAL_HEADER, header)
    if len(fields) != _LOCAL_HEADER or fields[:4] != b"PK\x03\x04":
        raise pickle.UnpicklingError("a member without a header")
    flags, method = struct.unpack("<HH", fields[6:10])
    name, extra = struct.unpack("<HH", fields[26:30])
    written = member.orig_filename.encode("utf-8" if member.flag_bits & _UTF_8 else "cp437")
    if os.pread(descriptor, name, header + _LOCAL_HEADER) != written or method or flags & _ENCRYPTED:
        raise pickle.UnpicklingError("a member whose header differs from the directory")
    return header + _LOCAL_HEADER + int(name) + int(extra)


def _unreadable(kind: str) -> Callable[..., object]:
    def refuse(*_: object) -> object:
        raise UnreadableArchiveError(f"holds a tensor that is {kind}")

    return refuse


@dataclass(frozen=True)
class _Placed:
    """Makes tensors of the storages of one archive.

    Attributes:
        folder: the folder in the archive that its members lie in, with a slash.
        spans: see `_spans`.
    """

    folder: str
    spans: Mapping[str, tuple[int, int]]

    def functions(self) -> dict[str, object]:
        """The functions of torch's own pickles."""
        return {
            "collections.OrderedDict": ordered_dict,
            "torch.Size": tuple,
            "torch.Tensor": None,
            "torch.nn.parameter.Parameter": None,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v3": lambda *found: self.tensor(*found[:6], *found[7:], dtype=found[6]),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            # A tensor that somebody gave attributes of their own; `make` is one of the functions here.
            "torch._tensor._rebuild_from_type_v2": lambda make, _kind, arguments, _state: make(*arguments),
            "torch.storage.UntypedStorage": None,
            "torch.serialization._get_layout": str,
            **{f"torch._utils.{name}": _unreadable(kind) for name, kind in _OTHER_TENSORS.items()},
            **{f"torch.{name}": name for name in (*TORCH_DTYPES, *_OTHER_DTYPES)},
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
        _gradient: object = False,
        _hooks: object = None,
        bits: object = None,
        *,
        dtype: Any = None,
    ) -> ArchivedTensor:
        """Where a tensor lies, checked against the member that holds its storage.

        Args:
            storage: that holds its entries.
            offset: its first entry in the storage.
            shape: its sizes.
            strides: how many entries apart neighbours are, in each dimension.
            bits: of a tensor that is stored conjugated or negated.
            dtype: by torch's name, where the storage has none.
        """
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
            raise UnreadableArchiveError(f"holds a tensor of {len(shape)} dimensions")
        if any(type(number) is not int or not 0 <= number < 2**62 for number in numbers):
            raise pickle.UnpicklingError("a tensor of no size")
        first, last = self.spans[storage.member]
        name = TORCH_DTYPES.get(str(dtype or storage.dtype), str(dtype or storage.dtype))
        if name not in NUMPY_DTYPES:
            return ArchivedTensor(name, tuple(shape), first, last, contiguous=True)
        size, entries = itemsize(name), math.prod(shape)
        expected = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        in_rows = entries == 0 or all(
            length == 1 or stride == wanted for length, stride, wanted in zip(shape, strides, expected, strict=True)
        )
        contiguous = in_rows and not bits
        begin = first + offset * size if entries else first
        end = begin + entries * size
        reach = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) + 1 if entries else 0
        if begin + reach * size > last:
            raise pickle.UnpicklingError("a tensor larger than its storage")
        return ArchivedTensor(name, tuple(shape), begin, end, contiguous)
