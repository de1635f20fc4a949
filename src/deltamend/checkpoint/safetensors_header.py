"""Read and write the header of a safetensors file.

deltamend reads tensors with `pread` at the offsets of the header instead of mapping the file: a mapped page counts as
resident memory until the file is closed, and a file that is truncated while mapped kills the process with SIGBUS.
The header is untrusted input; everything it says is checked against the file before it is used.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamend.checkpoint.dtypes import NUMPY_DTYPES, itemsize
from deltamend.checkpoint.tensor_rules import METADATA_NAME, fault_of_tensor
from deltamend.errors import CheckpointError, option
from deltamend.machine.regular_files import open_regular, reason

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor of a file: its dtype by its safetensors name, and its bytes [start, stop), counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """The header of one file; entries in the order of their bytes."""

    entries: tuple[HeaderEntry, ...]
    metadata: dict[str, str]
    text: bytes
    """The length field and the header, as they are in the file."""

    @property
    def described(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, dtype and shape of each tensor, as `encode_header` takes them."""
        return [(entry.name, entry.dtype, entry.shape) for entry in self.entries]


def read_header(path: Path) -> Header:
    """Read and check the header of `path`.

    Raises:
        CheckpointError: the file is no safetensors file, is truncated, or its header contradicts itself.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            total = os.fstat(file.fileno()).st_size
            prefix = _exactly(file.read(8), 8, path)
            length = int.from_bytes(prefix, "little")
            if length > min(MAX_HEADER_BYTES, total - 8):
                raise CheckpointError(
                    f"{path}: truncated or not a safetensors file (its header claims {length} bytes, the file has {total}); download it again"
                )
            raw = _exactly(file.read(length), length, path)
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error
    return _check(_parse(raw, path), total, prefix + raw, path)


def encode_header(
    tensors: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Build the first bytes of a file that holds `tensors` (name, dtype, shape) one after another.

    The text is laid out as the reference implementation does (compact JSON, metadata first, padded with blanks to a
    multiple of 8), so that a file with the same tensors in the same order has the same bytes.

    Returns:
        The length field and header, and for each name the [start, stop) of its bytes from the start of the file.

    Raises:
        CheckpointError: a name or shape breaks the rules of `tensor_rules`, or all of them are too long for a header.
    """
    table: dict[str, Any] = {METADATA_NAME: metadata} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        if fault := fault_of_tensor(name, shape, itemsize(dtype)):
            raise CheckpointError(f"tensor {name[:60]!a} cannot be written ({fault}); rename or reshape it")
        nbytes = math.prod(shape) * itemsize(dtype)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"the names of {len(tensors)} tensors take more than {MAX_HEADER_BYTES:,} bytes, which no reader takes; write smaller "
            f"files with {option('max_shard_size')}"
        )
    base = 8 + len(text)
    offsets = {
        name: (base + table[name]["data_offsets"][0], base + table[name]["data_offsets"][1]) for name, _, _ in tensors
    }
    return len(text).to_bytes(8, "little") + text, offsets


def _exactly(data: bytes, count: int, path: Path) -> bytes:
    if len(data) != count:
        raise CheckpointError(f"{path}: truncated (the file ends inside its header); download it again")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice")
    return table


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: corrupt header ({type(error).__name__}); download it again") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: corrupt header (not an object); download it again")
    return table


def _check(table: dict[str, Any], total: int, text: bytes, path: Path) -> Header:
    data_start = len(text)
    metadata = table.pop(METADATA_NAME, {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise CheckpointError(f"{path}: corrupt header (metadata must map text to text); download it again")
    if not all(_is_unicode(part) for item in metadata.items() for part in item):
        raise CheckpointError(f"{path}: corrupt header (metadata that is no Unicode text); download it again")
    entries = sorted(
        (_entry(name, value, data_start, path) for name, value in table.items()),
        key=lambda entry: (entry.start, entry.stop),
    )
    position = data_start
    for entry in entries:
        if entry.start != position:
            raise CheckpointError(
                f"{path}: corrupt header (tensor {entry.name!r} overlaps another or leaves a gap); download it again"
            )
        position = entry.stop
    if position != total:
        raise CheckpointError(
            f"{path}: truncated or corrupt (its header describes {position} bytes, the file has {total}); download it again"
        )
    return Header(tuple(entries), metadata, text)


def _entry(name: str, value: Any, data_start: int, path: Path) -> HeaderEntry:
    """Check one tensor's entry by itself."""
    fault = f"{path}: corrupt header (tensor {name!r}: "
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise CheckpointError(fault + "dtype, shape or data_offsets missing); download it again")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(_is_size(offset) for offset in offsets)):
        raise CheckpointError(fault + "data_offsets are not two positions); download it again")
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {dtype!r}, which deltamend cannot read; give it unquantised weights"
        )
    wrong = "its shape is not a list of sizes" if not isinstance(shape, list) else ""
    if wrong := wrong or fault_of_tensor(name, shape, itemsize(dtype)):
        raise CheckpointError(f"{path}: tensor {name[:60]!a} cannot be read ({wrong}); do not use this checkpoint")
    if offsets[1] - offsets[0] != math.prod(shape) * itemsize(dtype):
        raise CheckpointError(fault + "shape and data_offsets disagree); download it again")
    return HeaderEntry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _is_unicode(text: str) -> bool:
    """Whether it can be written down: JSON can name half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
