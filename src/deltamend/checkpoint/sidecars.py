"""The files of a checkpoint beside the weights that are read: which are copied, and which are left out and why."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from deltamend.checkpoint.file_names import CARD_FILE, FINETUNED_CARD_FILE, INDEX_FILE, MANIFEST_FILE, TORCH_INDEX_FILE
from deltamend.checkpoint.stray_weights import modules_of, reason_for_weights
from deltamend.errors import CheckpointError
from deltamend.machine.cached_folders import CONTENTS_FILE
from deltamend.machine.regular_files import open_without_links

_TOKENIZER = re.compile(r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab.*|merges\.txt|chat_template.*")
_DEEPEST = 50
"""Levels of folders in the folder of a model."""

_OWN = frozenset({CARD_FILE, FINETUNED_CARD_FILE, INDEX_FILE, MANIFEST_FILE})
"""Files that are written beside the copied ones."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class Sidecar:
    """A file to copy.

    Attributes:
        source: where it is.
        name: its path inside OUT, with forward slashes.
        size: in bytes.
        real: where its content lies, as all links led when it was listed.
        sha256: of its content when the plan was made; "" before `with_hashes`.
    """

    source: Path
    name: str
    size: int
    real: Path
    sha256: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A file that is not copied, and why."""

    name: str
    reason: str


def list_sidecars(
    folder: Path, weight_files: frozenset[str], tensors: Collection[str] = frozenset()
) -> tuple[tuple[Sidecar, ...], tuple[LeftOut, ...]]:
    """Sort the files of a checkpoint folder, subfolders included, into those to copy and those to leave out.

    Weights that are read by another part of the model's loader are copied, such as the modules that modules.json names;
    those that hold the model itself once more are left out, since they are not repaired.

    Args:
        folder: the folder of FINETUNED.
        weight_files: the names of the weight files that are read; they are in neither list.
        tensors: the names of the tensors in those files, by which another file of the model is recognised.

    Raises:
        CheckpointError: the folder cannot be listed, modules.json cannot be read, or a file to copy is a link that leads out
            of the folder.
    """
    modules = modules_of(folder)
    copied: list[Sidecar] = []
    left_out: list[LeftOut] = []
    for path in _walk(folder, folder):
        name = path.relative_to(folder).as_posix()
        if name in weight_files or name in {INDEX_FILE, TORCH_INDEX_FILE, CONTENTS_FILE}:
            continue
        if "/" in name and (first := name.partition("/")[0]) in _OWN:
            raise CheckpointError(f"{folder / first}: is a folder, and OUT needs a file of this name; rename it")
        if reason := _reason_to_leave(path, name) or reason_for_weights(path, name, modules, tensors):
            left_out.append(LeftOut(name if name.isprintable() else ascii(name), reason))
        else:
            _refuse_link_out(path, folder)
            renamed = FINETUNED_CARD_FILE if name == CARD_FILE else name
            copied.append(Sidecar(path, renamed, path.stat().st_size, Path(os.path.realpath(path))))
    return tuple(copied), tuple(left_out)


def with_hashes(sidecars: tuple[Sidecar, ...]) -> tuple[Sidecar, ...]:
    """The same files with the hashes of their content, which copying them compares.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    hashed = []
    for sidecar in sidecars:
        digest, size = hashlib.sha256(), 0
        for piece in pieces_of(sidecar):
            digest.update(piece)
            size += len(piece)
        hashed.append(replace(sidecar, size=size, sha256=digest.hexdigest()))
    return tuple(hashed)


def pieces_of(sidecar: Sidecar) -> Iterator[bytes]:
    """The content of a file to copy. It is opened where its content lay when it was listed, and no link is followed.

    Raises:
        CheckpointError: it cannot be read, is no regular file any more, or a link has taken the place of a part of its path.
    """
    try:
        with os.fdopen(open_without_links(sidecar.real), "rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError as error:
        raise CheckpointError(
            f"{sidecar.source}: cannot be read ({error.strerror}); check that it is still there, and start again"
        ) from error


def with_tokenizer_of(sidecars: tuple[Sidecar, ...], adapter: Path) -> tuple[Sidecar, ...]:
    """The files of a model, with the tokenizer and chat template of its adapter's folder where it brings its own.

    Raises:
        CheckpointError: the folder cannot be listed, or one of them is a link that leads out of it.
    """
    brought = {file.name: file for file in list_sidecars(adapter, frozenset())[0] if _TOKENIZER.fullmatch(file.name)}
    if not any(name.startswith("tokenizer") for name in brought):
        return sidecars
    return (*(file for file in sidecars if not _TOKENIZER.fullmatch(file.name)), *brought.values())


def _walk(folder: Path, top: Path, depth: int = 1) -> Iterator[Path]:
    """Files and links to files, and folders that are not entered, in the order of their names."""
    if depth > _DEEPEST:
        raise CheckpointError(
            f"{top}: holds folders in more than {_DEEPEST} levels; remove what does not belong to the model"
        )
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    for path in entries:
        is_folder = path.is_dir() and not path.is_symlink()
        hidden = path.name.startswith(".")
        training = folder == top and (path.name.startswith("checkpoint-") or path.name == "runs")
        if is_folder and not hidden and not training:
            yield from _walk(path, top, depth + 1)
        else:
            yield path


def _reason_to_leave(path: Path, name: str) -> str:
    """Why a file is not copied; "" where it is."""
    if not name.isprintable():
        return "its name cannot be printed"
    if any(part.startswith(".") for part in Path(name).parts):
        return "hidden"
    if path.is_dir():
        return "a folder of training checkpoints or logs, or a link to a folder"
    if not path.is_file():
        return "not a regular file"
    if name in {MANIFEST_FILE, FINETUNED_CARD_FILE}:
        return "belongs to an earlier repair"
    return ""


def _refuse_link_out(path: Path, folder: Path) -> None:
    if not _stays_inside(path, folder):
        # Neither copied, since it may be anything on this machine, nor left out, since the model may not load without it.
        raise CheckpointError(
            f"{path}: a link that leads out of the folder; put a copy of the file there, or remove the link"
        )


def _stays_inside(path: Path, folder: Path) -> bool:
    """Whether a file's content lies in the folder, or in the blobs of the hub cache the folder is a snapshot of."""
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    model = home.parent.parent
    is_snapshot = home.parent.name == "snapshots" and model.name.startswith("models--")
    return real.is_relative_to(home) or (is_snapshot and real.is_relative_to(model / "blobs"))
