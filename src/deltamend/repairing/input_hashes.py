"""Hash the weight files of both inputs, for the manifest."""

from __future__ import annotations

import os
from pathlib import Path

from deltamend.checkpoint.checkpoint_folder import Checkpoint
from deltamend.checkpoint.hashing import hash_alike, hash_file
from deltamend.checkpoint.manifest import FileRecord, InputRecord
from deltamend.machine.threads import Workers


def hash_inputs(base: Checkpoint, finetuned: Checkpoint, workers: Workers) -> tuple[InputRecord, InputRecord]:
    """Hash the weight files of both inputs. `Checkpoint.check_unchanged` finds out later whether they have changed."""
    ours, theirs = base.weight_files, finetuned.weight_files
    names = sorted(ours.keys() | theirs.keys())
    hashed = workers.map(lambda name: _hash_sides(ours.get(name), theirs.get(name), name), names)
    sides = [tuple(record for pair in hashed if (record := pair[side]) is not None) for side in (0, 1)]
    return (
        InputRecord(name=_folder_name(base), files=sides[0]),
        InputRecord(name=_folder_name(finetuned), files=sides[1]),
    )


def _hash_sides(base: Path | None, finetuned: Path | None, name: str) -> tuple[FileRecord | None, FileRecord | None]:
    """Hash the base's and the fine-tuned model's file of one name; None for a side that has no such file."""
    if base is not None and finetuned is not None:
        return hash_alike(base, finetuned, name)
    return (hash_file(base, name) if base else None, hash_file(finetuned, name) if finetuned else None)


def _folder_name(checkpoint: Checkpoint) -> str:
    """The name of the folder without its path, because the manifest holds no paths of this machine."""
    models = [
        checkpoint.source or checkpoint.folder,
        *([] if checkpoint.adapter is None else checkpoint.adapter.folders),
    ]
    names = [Path(os.path.abspath(model)).name for model in models]  # noqa: PTH100 - resolve() would name a link's target
    return os.fsencode("+".join(names)).decode(errors="replace")
