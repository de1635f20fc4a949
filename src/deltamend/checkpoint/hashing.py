"""Hashes of the files and tensors that were read and written.

Files are hashed with SHA-256, as `sha256sum` prints it and model hubs list it. Tensors are hashed with XXH3-128, which is 30
times faster and finds accidental damage as well; it does not protect against forgery, which the hashes of the files do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import xxhash

from deltamend.checkpoint.manifest import FileRecord
from deltamend.errors import CheckpointError
from deltamend.machine.digests import json_sha256
from deltamend.machine.regular_files import open_regular, reason

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""Suffixes of the files that hold the weights of a model."""
_PIECE = 1 << 20


class FolderHash(NamedTuple):
    """What identifies the model in a folder.

    Attributes:
        weights: SHA-256 of the names and hashes of all weight files; None where there are none.
        other_files: SHA-256 of each other file, by its name.
    """

    weights: str | None
    other_files: Mapping[str, str]


def hash_folder(folder: Path) -> FolderHash:
    """Hash the files of a model; subfolders are left out.

    Raises:
        CheckpointError: a file cannot be read.
    """
    hashes = {path.name: hash_file(path, path.name).sha256 for path in sorted(folder.iterdir()) if path.is_file()}
    weights = {name: digest for name, digest in hashes.items() if name.endswith(WEIGHT_SUFFIXES)}
    others = {name: digest for name, digest in hashes.items() if name not in weights}
    return FolderHash(json_sha256(weights) if weights else None, others)


def hash_file(path: Path, name: str) -> FileRecord:
    """The size and hash of a file, recorded under `name`.

    Raises:
        CheckpointError: it cannot be read.
    """
    return hash_alike(path, path, name)[0]


def hash_alike(first: Path, second: Path, name: str) -> tuple[FileRecord, FileRecord]:
    """The size and hash of two files, read side by side and both recorded under `name`.

    As far as they hold the same bytes they are hashed once: SHA-256 is slower than reading, and a base and its
    fine-tuned descendant can share whole shards.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    paths = [first] if first == second else [first, second]
    digests = [hashlib.sha256()]
    sizes = [0] * len(paths)
    with ExitStack() as stack:
        streams = [stack.enter_context(_opened(path)) for path in paths]
        while any(pieces := [_read(stream, path) for stream, path in zip(streams, paths, strict=True)]):
            if len(digests) < len(paths) and pieces[0] != pieces[-1]:
                digests.append(digests[0].copy())
            for digest, piece in zip(digests, pieces, strict=False):
                digest.update(piece)
            sizes = [size + len(piece) for size, piece in zip(sizes, pieces, strict=True)]
    records = [
        FileRecord(name=name, size=size, sha256=digests[min(index, len(digests) - 1)].hexdigest())
        for index, size in enumerate(sizes)
    ]
    return records[0], records[-1]


def tensor_hash(pieces: Iterable[bytes | memoryview]) -> str:
    """XXH3-128 of a tensor's bytes, given in pieces."""
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _opened(path: Path) -> BinaryIO:
    try:
        return os.fdopen(open_regular(path), "rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error


def _read(stream: BinaryIO, path: Path) -> bytes:
    try:
        return stream.read(_PIECE)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the disk") from error
