"""Check a repaired checkpoint against the hashes that its `deltamend.json` records."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from deltamend.checkpoint.checkpoint_folder import Checkpoint, StoredTensor, open_folder
from deltamend.checkpoint.file_names import ADAPTER_FILE, MANIFEST_FILE
from deltamend.checkpoint.hashing import hash_file, tensor_hash
from deltamend.checkpoint.manifest import Manifest, decode_manifest
from deltamend.checkpoint.safetensors_header import read_header
from deltamend.errors import CheckpointError, OutputError
from deltamend.machine.bounded_files import UnreadableError, entries_below, read_bytes

_LARGEST = 1_000_000_000
"""Bytes that a `deltamend.json` may have."""


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """Compare every file and tensor of a repaired checkpoint with what its deltamend.json records.

    Args:
        folder: OUT of a repair, a checkpoint or an adapter.

    Returns:
        One line for each difference: a file that is missing, added or changed; a tensor whose bytes, shape or dtype
        differ. Empty where everything matches.

    Raises:
        CheckpointError: there is no readable `deltamend.json`, or its text differs from its own hash.

    Source: ours; SHA-256 for files, XXH3-128 for tensors.
    """
    path = Path(folder)
    try:
        manifest = decode_manifest(read_bytes(path / MANIFEST_FILE, _LARGEST))
        entries = list(entries_below(path))
    except UnreadableError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        raise CheckpointError(
            f"{path / MANIFEST_FILE}: {'missing' if missing else f'cannot be read ({error})'}; give a folder that deltamend wrote"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path / MANIFEST_FILE}: its text differs from the hash it records of itself; do not trust this folder"
        ) from error
    faults = _changed_files(path, manifest)
    faults += _added(path, entries, {MANIFEST_FILE, *(file.name for file in manifest.files)})
    return faults + _changed_tensors(path, manifest)


def _added(folder: Path, entries: list[Path], written: set[str]) -> list[str]:
    """What is in a folder and was not written, whatever it is: files, links, pipes, sockets, and folders with nothing in them."""
    faults = []
    for path in sorted(entries):
        name, kind = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISDIR(kind):
            if not any(path.iterdir()):
                faults.append(f"{name}: an empty folder, not written by deltamend")
        elif name not in written:
            faults.append(f"{name}: not written by deltamend")
        elif not stat.S_ISREG(kind):
            faults.append(f"{name}: a link or no regular file, which deltamend does not write")
    return faults


def check_readable(folder: Path, manifest: Manifest) -> None:
    """Read the headers of an output back before it is published, and compare them with the manifest.

    Args:
        folder: the complete output, in its work folder.
        manifest: that describes it.

    Raises:
        OutputError: a file of weights cannot be read, or says something else of its tensors than the manifest does.
    """
    files = {ADAPTER_FILE} if manifest.is_adapter else {tensor.file for tensor in manifest.tensors}
    try:
        entries = [entry for file in sorted(files) for entry in read_header(folder / file).entries]
    except CheckpointError as error:
        raise OutputError(f"the output that was made cannot be read again, so it is not published: {error}") from error
    wanted = {name: (shape, dtype) for name, (shape, dtype, _) in _written(manifest).items()}
    if {entry.name: (entry.shape, entry.dtype) for entry in entries} != wanted or len(entries) != len(wanted):
        raise OutputError(
            f"{folder}: the headers that were written name other tensors than were planned, so the output is not published; please "
            "report this"
        )


def _open(folder: Path, manifest: Manifest) -> Checkpoint:
    """Open the weights as a loader would find them."""
    if manifest.is_adapter:
        return Checkpoint(folder, {}, {ADAPTER_FILE: read_header(folder / ADAPTER_FILE)}, has_index=False)
    return open_folder(folder)


def _written(manifest: Manifest) -> dict[str, tuple[tuple[int, ...], str, str]]:
    """Shape, dtype and hash of every tensor that was written, by its name in the file."""
    if manifest.is_adapter:
        parts = [part for tensor in manifest.tensors for part in tensor.adapter or ()]
        return {part.key: (part.shape, part.dtype, part.xxh3) for part in parts}
    return {tensor.name: (tensor.shape, tensor.dtype, tensor.xxh3) for tensor in manifest.tensors}


def _changed_files(folder: Path, manifest: Manifest) -> list[str]:
    faults = []
    for written in manifest.files:
        file = folder / written.name
        if not _stays_inside(file, folder):
            faults.append(f"{written.name}: leads out of the folder, and is not read")
        elif not file.is_file():
            faults.append(f"{written.name}: missing")
        elif (size := file.stat().st_size) != written.size:
            faults.append(f"{written.name}: changed ({size} bytes instead of {written.size})")
        elif hash_file(file, written.name) != written:
            faults.append(f"{written.name}: changed")
    return faults


def _stays_inside(file: Path, folder: Path) -> bool:
    """Whether a file lies in the folder, also where its name has `..` or it is a link."""
    try:
        return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # a NUL in the name
        return False


def _changed_tensors(folder: Path, manifest: Manifest) -> list[str]:
    """Tensors that are not as written, read through the headers and the index as a loader would."""
    try:
        with _open(folder, manifest) as checkpoint:
            written = _written(manifest)
            faults = [
                f"tensor {name!r}: not written by deltamend" for name in checkpoint.tensors if name not in written
            ]
            for name, (shape, dtype, xxh3) in written.items():
                tensor = checkpoint.tensors.get(name)
                if tensor is None:
                    faults.append(f"tensor {name!r}: missing")
                elif (tensor.shape, tensor.dtype) != (shape, dtype):
                    faults.append(f"tensor {name!r}: other shape or dtype")
                elif tensor_hash(_pieces(checkpoint, tensor)) != xxh3:
                    faults.append(f"tensor {name!r}: changed")
            return faults
    except CheckpointError as error:
        return [str(error)]


def _pieces(checkpoint: Checkpoint, tensor: StoredTensor, size: int = 1 << 22) -> Iterator[bytes]:
    for start in range(0, tensor.nbytes, size):
        piece = bytearray(min(size, tensor.nbytes - start))
        checkpoint.read_into(tensor, start, memoryview(piece))
        yield bytes(piece)
