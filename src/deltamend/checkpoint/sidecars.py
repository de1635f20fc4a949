"""The files of a checkpoint that are not weights, such as the tokenizer: which are copied, and which are left out and why."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltamend.checkpoint.file_names import CARD_FILE, FINETUNED_CARD_FILE, INDEX_FILE, MANIFEST_FILE, TORCH_INDEX_FILE
from deltamend.errors import CheckpointError

_WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".tflite"}
)
_TRAINER_FILES = frozenset({"trainer_state.json", "training_args.json"})
_INDEX_SUFFIX = ".index.json"
_TOKENIZER = re.compile(r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab.*|merges\.txt|chat_template.*")


@dataclass(frozen=True)
class Sidecar:
    """A file to copy: where it is, its path inside OUT with forward slashes, and its size in bytes."""

    source: Path
    name: str
    size: int


@dataclass(frozen=True)
class LeftOut:
    """A file that is not copied, and why."""

    name: str
    reason: str


def list_sidecars(folder: Path, weight_files: frozenset[str]) -> tuple[tuple[Sidecar, ...], tuple[LeftOut, ...]]:
    """Sort the files of a checkpoint folder, subfolders included, into those to copy and those to leave out.

    Args:
        folder: the folder of FINETUNED.
        weight_files: the names of the weight files that are read; they are in neither list.

    Raises:
        CheckpointError: the folder cannot be listed, or a file to copy is a link that leads out of it.
    """
    copied: list[Sidecar] = []
    left_out: list[LeftOut] = []
    for path in _walk(folder, folder):
        name = path.relative_to(folder).as_posix()
        if name in weight_files or name in {INDEX_FILE, TORCH_INDEX_FILE}:
            continue
        if reason := _reason_to_leave(path, name, folder):
            left_out.append(LeftOut(name if name.isprintable() else ascii(name), reason))
        else:
            renamed = FINETUNED_CARD_FILE if name == CARD_FILE else name
            copied.append(Sidecar(path, renamed, path.stat().st_size))
    return tuple(copied), tuple(left_out)


def with_tokenizer_of(sidecars: tuple[Sidecar, ...], adapter: Path) -> tuple[Sidecar, ...]:
    """The files of a model, with the tokenizer and chat template of its adapter's folder where it brings its own.

    Raises:
        CheckpointError: the folder cannot be listed, or one of them is a link that leads out of it.
    """
    brought = {file.name: file for file in list_sidecars(adapter, frozenset())[0] if _TOKENIZER.fullmatch(file.name)}
    if not any(name.startswith("tokenizer") for name in brought):
        return sidecars
    return (*(file for file in sidecars if not _TOKENIZER.fullmatch(file.name)), *brought.values())


def _walk(folder: Path, top: Path) -> Iterator[Path]:
    """Files and links to files, and folders that are not entered, in the order of their names."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    for path in entries:
        is_folder = path.is_dir() and not path.is_symlink()
        hidden = path.name.startswith(".")
        training = folder == top and (path.name.startswith("checkpoint-") or path.name == "runs")
        if is_folder and not hidden and not training:
            yield from _walk(path, top)
        else:
            yield path


def _reason_to_leave(path: Path, name: str, folder: Path) -> str:
    """Why a file is not copied; "" where it is."""
    if not name.isprintable():
        return "its name cannot be printed"
    if any(part.startswith(".") for part in Path(name).parts):
        return "hidden"
    if path.is_dir():
        return "a folder of training checkpoints or logs, or a link to a folder"
    if not path.is_file():
        return "not a regular file"
    if path.suffix.lower() in _WEIGHT_SUFFIXES or name.endswith(_INDEX_SUFFIX):
        return "weights in a file that the index does not name"
    if name in _TRAINER_FILES:
        return "state of the training run"
    if name in {MANIFEST_FILE, FINETUNED_CARD_FILE}:
        return "belongs to an earlier repair"
    if not _stays_inside(path, folder):
        # Neither copied, since it may be anything on this machine, nor left out, since the model may not load without it.
        raise CheckpointError(
            f"{path}: a link that leads out of the folder; put a copy of the file there, or remove the link"
        )
    return ""


def _stays_inside(path: Path, folder: Path) -> bool:
    """Whether a file's content lies in the folder, or in the blobs of the hub cache the folder is a snapshot of."""
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return real.is_relative_to(home) or real.is_relative_to(home.parent.parent / "blobs")
