"""Open a checkpoint folder without reading its weights, and read bytes of one tensor at a time."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deltamend.checkpoint.dtypes import itemsize
from deltamend.checkpoint.safetensors_header import Header, read_header
from deltamend.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
MAX_JSON_BYTES = 200_000_000

# Names under which quantisers store packed weights or their scales.
PACKED_SUFFIXES = (
    ".qweight", ".qzeros", ".g_idx", ".scales", ".absmax", ".quant_map", ".SCB", ".weight_packed", ".weight_scale",
    ".weight_scale_inv", ".weight_format", ".input_scale", "_blocks", "_scales",
)  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: its bytes are [start, stop) of `file`, row-major, in the safetensors dtype `dtype`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes in its file."""
        return self.stop - self.start

    @property
    def elements(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class _OpenFile:
    descriptor: int
    size: int
    mtime_ns: int


class Checkpoint:
    """An open checkpoint: its config, and its tensors by name. Reads from several threads are safe.

    Use it as a context manager; it holds one file descriptor for each weight file.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], headers: Mapping[str, Header], *, has_index: bool
    ) -> None:
        self.folder = folder
        self.config = config
        self.headers = headers
        self.has_index = has_index
        self.tensors: dict[str, StoredTensor] = {
            entry.name: StoredTensor(entry.name, entry.dtype, entry.shape, file, entry.start, entry.stop)
            for file, header in headers.items()
            for entry in header.entries
        }
        self._files: dict[str, _OpenFile] = {}
        try:
            for file in headers:
                self._files[file] = _open_file(folder / file)
        except BaseException:
            self.close()
            raise

    def read_into(self, tensor: StoredTensor, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `tensor` from byte `offset` of its data on.

        Raises:
            CheckpointError: the file ended early or could not be read.
        """
        opened = self._files[tensor.file]
        position, done = tensor.start + offset, 0
        while done < len(buffer):
            try:
                count = os.preadv(opened.descriptor, [buffer[done:]], position + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.folder / tensor.file}: cannot be read ({error.strerror}); check the disk"
                ) from error
            if count == 0:
                raise CheckpointError(
                    f"{self.folder / tensor.file}: truncated inside tensor {tensor.name!r}; download it again"
                )
            done += count

    def modification_times(self) -> list[int]:
        """When each weight file was last written, in nanoseconds, as of opening."""
        return [opened.mtime_ns for opened in self._files.values()]

    def check_unchanged(self) -> None:
        """Raise CheckpointError when a weight file was written to since it was opened."""
        for file, opened in self._files.items():
            try:
                now = (self.folder / file).stat()
            except OSError as error:
                raise CheckpointError(f"{self.folder / file}: went away during the run; start again") from error
            if (now.st_size, now.st_mtime_ns) != (opened.size, opened.mtime_ns):
                raise CheckpointError(
                    f"{self.folder / file}: changed during the run; start again when nothing writes to it"
                )

    def close(self) -> None:
        """Close the weight files."""
        for opened in self._files.values():
            os.close(opened.descriptor)
        self._files = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Open the checkpoint in `folder`: config.json and model.safetensors, or the shards an index names.

    Where there is an index only the files it names are read; other weight files in the folder are left alone.

    Raises:
        CheckpointError: something is missing, truncated, corrupt, quantised, or points outside the folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such folder; give the folder of a checkpoint with config.json and {WEIGHTS_FILE}"
        )
    config = _read_json(path / CONFIG_FILE)
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{path / CONFIG_FILE}: the weights are quantised (quantization_config); a raw difference of packed values means nothing, "
            "give the unquantised checkpoint"
        )
    has_index = (path / INDEX_FILE).exists()
    headers = _indexed_headers(path) if has_index else {WEIGHTS_FILE: _single_header(path)}
    checkpoint = Checkpoint(path, config, headers, has_index=has_index)
    try:
        refuse_quantised(checkpoint.tensors.values(), path)
    except CheckpointError:
        checkpoint.close()
        raise
    return checkpoint


def _open_file(path: Path) -> _OpenFile:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be opened ({error.strerror}); check the path and its permissions"
        ) from error
    found = os.fstat(descriptor)
    return _OpenFile(descriptor, found.st_size, found.st_mtime_ns)


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, with an error that names the file."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its other end
            raise CheckpointError(f"{path}: not a regular file; give the folder that save_pretrained wrote")
        if found.st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path}: larger than {MAX_JSON_BYTES} bytes, which no such file is; check where it comes from"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; give the folder that save_pretrained wrote") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object; download it again")
    return value


def _single_header(folder: Path) -> Header:
    if not (folder / WEIGHTS_FILE).exists():
        others = sorted(
            file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".gguf", ".safetensors"}
        )
        found = f"found only {', '.join(others[:3])}" if others else "found no weights at all"
        raise CheckpointError(
            f"{folder}: no {WEIGHTS_FILE} and no {INDEX_FILE} ({found}); save it with save_pretrained first"
        )
    return read_header(folder / WEIGHTS_FILE)


def _indexed_headers(folder: Path) -> dict[str, Header]:
    """Headers of the shards the index names, in the order of their names, checked against the index."""
    path = folder / INDEX_FILE
    weight_map = _read_json(path).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(file, str) for file in weight_map.values())):
        raise CheckpointError(f"{path}: no weight_map of tensor names to files; download it again")
    headers: dict[str, Header] = {}
    for file in sorted(set(weight_map.values())):
        if not _is_plain_name(file):
            raise CheckpointError(
                f"{path}: names {file!r}, which is not a .safetensors file of its own folder; do not use this checkpoint"
            )
        if not (folder / file).is_file():
            raise CheckpointError(f"{path}: names the shard {file!r}, which is missing; download it again")
        headers[file] = read_header(folder / file)
    held = {entry.name: file for file, header in headers.items() for entry in header.entries}
    for name in sorted(weight_map.keys() | held.keys()):
        if held.get(name) != weight_map.get(name):
            raise CheckpointError(
                f"{path}: puts tensor {name!r} in {weight_map.get(name, 'no file')}, but it is in {held.get(name, 'no shard')}; rebuild the index"
            )
    return headers


def _is_plain_name(file: str) -> bool:
    """Whether a shard's name is one of the folder itself, and fit to be printed."""
    separated = any(part in file for part in ("/", "\\", "\0"))
    printable = file.isprintable() and len(file.encode()) <= 255  # what a file system takes
    return file.endswith(".safetensors") and printable and not separated and not file.startswith(".")


def refuse_quantised(tensors: Iterable[StoredTensor], where: Path | str) -> None:
    """Raise CheckpointError when a tensor holds packed codes, or values that mean nothing without their scales."""
    for tensor in tensors:
        packed = tensor.name.endswith(PACKED_SUFFIXES) or tensor.dtype.startswith("F8_")
        if packed or (tensor.dtype in {"U8", "I8"} and len(tensor.shape) >= 2):
            raise CheckpointError(
                f"{where}: tensor {tensor.name!r} ({tensor.dtype}) belongs to a quantised model; a raw difference of "
                f"{itemsize(tensor.dtype)}-byte codes or of values without their scales means nothing, give the unquantised checkpoint"
            )
