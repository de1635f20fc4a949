"""Open a checkpoint folder without reading its weights, and read bytes of one tensor at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from deltamend.checkpoint.dtypes import NUMPY_DTYPES, itemsize
from deltamend.checkpoint.file_names import (
    CONFIG_FILE,
    INDEX_FILE,
    TORCH_FILE,
    TORCH_INDEX_FILE,
    TORCH_SUFFIX,
    WEIGHTS_FILE,
)
from deltamend.checkpoint.json_file import read_json
from deltamend.checkpoint.safetensors_header import Header, read_header
from deltamend.checkpoint.tensor_rules import fault_of_tensor
from deltamend.checkpoint.torch_file import read_torch_header
from deltamend.errors import CheckpointError
from deltamend.machine.regular_files import open_regular, reason

Array = np.ndarray[Any, np.dtype[Any]]
_WEIGHT_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".gguf", ".safetensors"})


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is stored.

    Attributes:
        name: the name it is shown under.
        dtype: by its safetensors name; of a tensor that is computed as it is read, the dtype of what is computed.
        shape: of what is read.
        file: the weight file that holds it.
        start: its first byte in the file; values are row-major.
        stop: the byte after its last.
        written_dtype: the dtype it is written in, where that is another than `dtype`.
        origin: its name in its own checkpoint, where it is shown under another.
        view: the (rows, columns) that its entries are read as; None where nothing was decided about it.
        packing: the format its values are quantised in, where they are dequantised as they are read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int
    written_dtype: str | None = None
    origin: str | None = None
    view: tuple[int, int] | None = field(default=None, compare=False)
    packing: str | None = None

    @property
    def own_name(self) -> str:
        """Its name in its own checkpoint."""
        return self.origin or self.name

    @property
    def output_dtype(self) -> str:
        """The dtype it is written in where none is asked for."""
        return self.written_dtype or self.dtype

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
    identity: tuple[int, int, int, int]
    mtime_ns: int


class ComputedTensor(Protocol):
    """The source of a tensor whose values are computed as they are read, such as a weight with an adapter added to it."""

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """Fill `out` with the values of entries [start, stop), counted row by row, in the dtype of its StoredTensor."""


@runtime_checkable
class QuantisedTensor(ComputedTensor, Protocol):
    """The source of a tensor that is dequantised as it is read."""

    def squared_errors(self, start: int, stop: int) -> Array:
        """See `Checkpoint.squared_errors`."""


class Checkpoint:
    """An open checkpoint: its config, and its tensors by name. Reads from several threads are safe.

    Use it as a context manager; it holds one file descriptor for each weight file.

    Attributes:
        folder: the folder of the checkpoint.
        config: its config.json, or what config.json has to say for the tensors as they are shown.
        config_altered: whether `config` differs from the file.
        headers: the header of each weight file, by the name of the file.
        has_index: whether there is an index file that names the weight files.
        source: the file that the folder was unpacked from, such as a GGUF file; None where it was not.
        adapter: the adapter that is added to the weights; None where there is none.
        update_ranks: the rank of what the adapter adds to a tensor, by the name of the tensor.
        untied: the embedding that a head was tied to before the adapter changed one of them, by the name of the head's weight.
        layer_sources: of each layer as shown, the number that it has in the files, where layers are repeated; else None.
        assembled: whether its files are those of a training run, which no loader takes, and are not the model for the output's.
        notes: how it is read where that is not simply as stored, a sentence each.
        tensors: all tensors by name. Some may be computed as they are read; see `present`.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], headers: Mapping[str, Header], *, has_index: bool
    ) -> None:
        self.folder = folder
        self.config = config
        self.headers = headers
        self.has_index = has_index
        self.config_altered = False
        self.assembled = False
        self.source: Path | None = None
        self.adapter: Checkpoint | None = None
        self.update_ranks: dict[str, int] = {}
        self.untied: dict[str, str] = {}
        self.layer_sources: tuple[int, ...] | None = None
        self.notes: tuple[str, ...] = ()
        self.tensors: dict[str, StoredTensor] = {
            entry.name: StoredTensor(entry.name, entry.dtype, entry.shape, file, entry.start, entry.stop)
            for file, header in headers.items()
            for entry in header.entries
        }
        self._computed: dict[StoredTensor, ComputedTensor] = {}
        self._files: dict[str, _OpenFile] = {}
        try:
            for file, header in headers.items():
                self._files[file] = opened = _open_file(folder / file)
                if header.text and os.pread(opened.descriptor, len(header.text), 0) != header.text:
                    raise CheckpointError(f"{folder / file}: changed while it was opened; start again")
        except BaseException:
            self.close()
            raise

    def present(
        self,
        tensors: Mapping[str, StoredTensor],
        computed: Mapping[StoredTensor, ComputedTensor] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        """Show other tensors than the files hold: under other names, with other shapes, or computed as they are read.

        Args:
            tensors: what `tensors` is from now on.
            computed: the sources of those that are computed as they are read, whether shown or used in computing others.
            notes: how it is now read, a sentence each.

        Raises:
            CheckpointError: a name or shape breaks the rules of `tensor_rules`.
        """
        for name, tensor in tensors.items():
            if fault := fault_of_tensor(name, tensor.shape, itemsize(tensor.dtype)):
                raise CheckpointError(
                    f"{self.folder}: tensor {name[:60]!a} cannot be read ({fault}); do not use this checkpoint"
                )
        self.tensors = dict(tensors)
        self._computed.update(computed or {})
        self.notes += tuple(notes)

    def alter_config(self, config: Mapping[str, Any]) -> None:
        """Replace `config` by what config.json has to say for the tensors as they are shown."""
        self.config, self.config_altered = config, True

    def is_computed(self, tensor: StoredTensor) -> bool:
        """Whether the values of a tensor are computed as they are read, and are not the bytes of its file."""
        return tensor in self._computed

    def read_into(self, tensor: StoredTensor, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `tensor` from byte `offset` of its data on.

        Raises:
            CheckpointError: the file ended early or could not be read.
        """
        if (computed := self._computed.get(tensor)) is not None:
            values = np.frombuffer(buffer, NUMPY_DTYPES[tensor.dtype])
            start = offset // values.itemsize
            computed.read_into(start, start + values.size, values)
            return
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

    def squared_errors(self, tensor: StoredTensor, start: int, stop: int) -> Array | None:
        """The expected squared rounding error of entries [start, stop) of a tensor that is quantised.

        Assumed: each value was rounded once, to the nearest that its format has, from a value spread evenly over its cell.

        Returns:
            fp32, shape (stop − start,); None where the tensor is not quantised, or its source cannot tell.
        """
        source = None if tensor.packing is None else self._computed.get(tensor)
        return source.squared_errors(start, stop) if isinstance(source, QuantisedTensor) else None

    def values(self, tensor: StoredTensor, start: int, stop: int) -> Array:
        """Entries [start, stop) of a tensor, counted row by row, in its stored dtype."""
        dtype = NUMPY_DTYPES[tensor.dtype]
        values = np.empty(stop - start, dtype)
        self.read_into(tensor, start * dtype.itemsize, values.view(np.uint8).data)
        return values

    @property
    def folders(self) -> list[Path]:
        """Every path it is read from: its folder, the file it was unpacked from, and those of its adapter."""
        own = [self.folder] if self.source is None else [self.folder, self.source]
        return [*own, *([] if self.adapter is None else self.adapter.folders)]

    @property
    def weight_files(self) -> dict[str, Path]:
        """Every weight file by its name, those of its adapter included."""
        theirs = {} if self.adapter is None else self.adapter.weight_files
        return theirs | {file: self.folder / file for file in sorted(self.headers)}

    def modification_times(self) -> list[int]:
        """When each weight file was last written, in nanoseconds, as of opening."""
        theirs = [] if self.adapter is None else self.adapter.modification_times()
        return [*(opened.mtime_ns for opened in self._files.values()), *theirs]

    def check_unchanged(self) -> None:
        """Raise CheckpointError when a weight file was written to or replaced since it was opened."""
        if self.adapter is not None:
            self.adapter.check_unchanged()
        for file, opened in self._files.items():
            try:
                now = _identity((self.folder / file).stat())
            except OSError as error:
                raise CheckpointError(f"{self.folder / file}: was removed during the run; start again") from error
            if now != opened.identity:
                raise CheckpointError(
                    f"{self.folder / file}: changed during the run; start again when nothing writes to it"
                )

    def close(self) -> None:
        """Close the weight files."""
        if self.adapter is not None:
            self.adapter.close()
        for opened in self._files.values():
            os.close(opened.descriptor)
        self._files = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_folder(path: Path) -> Checkpoint:
    """Open the weights in a folder as they are stored; `inputs.open_models.open_checkpoint` opens every other kind of model.

    Where there is an index, only the files that it names are read; other weight files in the folder are ignored.

    Raises:
        CheckpointError: something is missing, truncated, corrupt, or points outside the folder.
    """
    config = read_json(path / CONFIG_FILE)
    index = next((name for name in (INDEX_FILE, TORCH_INDEX_FILE) if (path / name).exists()), None)
    headers = (
        {(file := _single_file(path)): _read_any(path / file)} if index is None else _indexed_headers(path / index)
    )
    return Checkpoint(path, config, headers, has_index=index is not None)


def _open_file(path: Path) -> _OpenFile:
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error
    found = os.fstat(descriptor)
    return _OpenFile(descriptor, _identity(found), found.st_mtime_ns)


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    """What is another one as soon as a file is written to, or another file takes its name."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _single_file(folder: Path) -> str:
    found = next((file for file in (WEIGHTS_FILE, TORCH_FILE) if (folder / file).exists()), None)
    if found is None:
        others = sorted(file.name for file in folder.iterdir() if file.suffix in _WEIGHT_SUFFIXES)
        what = f"found only {', '.join(others[:3])}" if others else "found no weights at all"
        raise CheckpointError(
            f"{folder}: no {WEIGHTS_FILE} and no {INDEX_FILE} ({what}); save it with save_pretrained first"
        )
    return found


def _read_any(path: Path) -> Header:
    if path.suffix == TORCH_SUFFIX:
        return read_torch_header(path)
    return read_header(path)


def _indexed_headers(path: Path) -> dict[str, Header]:
    """Headers of the shards the index names, in the order of their names, checked against the index."""
    folder = path.parent
    weight_map = read_json(path).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(file, str) for file in weight_map.values())):
        raise CheckpointError(f"{path}: no weight_map of tensor names to files; download it again")
    suffix = TORCH_SUFFIX if path.name == TORCH_INDEX_FILE else ".safetensors"
    headers: dict[str, Header] = {}
    for file in sorted(set(weight_map.values())):
        if not _is_plain_name(file, suffix):
            raise CheckpointError(
                f"{path}: names {file!r}, which is not a {suffix} file of its own folder; do not use this checkpoint"
            )
        if not (folder / file).is_file():
            raise CheckpointError(f"{path}: names the shard {file!r}, which is missing; download it again")
        headers[file] = _read_any(folder / file)
    held = {entry.name: file for file, header in headers.items() for entry in header.entries}
    for name in sorted(weight_map.keys() | held.keys()):
        if held.get(name) != weight_map.get(name):
            raise CheckpointError(
                f"{path}: puts tensor {name!r} in {weight_map.get(name, 'no file')}, but it is in {held.get(name, 'no shard')}; rebuild the index"
            )
    return headers


def _is_plain_name(file: str, suffix: str) -> bool:
    """Whether the name of a shard is a file of the folder itself, and can be printed."""
    separated = any(part in file for part in ("/", "\\", "\0"))
    printable = file.isprintable() and len(file.encode()) <= 255  # what a file system takes
    return file.endswith(suffix) and printable and not separated and not file.startswith(".")
