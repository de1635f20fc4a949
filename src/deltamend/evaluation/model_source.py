"""What MODEL is: a folder, a hub id, a GGUF file, or a name that only the backend knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from deltamend.checkpoint.hashing import WEIGHT_SUFFIXES, hash_folder
from deltamend.errors import EvaluationError
from deltamend.inputs.hub import is_hub_id
from deltamend.inputs.open_models import model_folder

_TRANSFORMERS_BACKENDS = ("hf", "hf-auto", "huggingface")


class ModelSource(NamedTuple):
    """A model as the backend wants it, and what identifies it.

    Attributes:
        name: an absolute folder, or the name that a remote backend knows.
        weights_hash: SHA-256 over the weight files; None where they are not on this machine.
        other_files: name of every other file in the folder to its SHA-256.
    """

    name: str
    weights_hash: str | None
    other_files: Mapping[str, str]


def runs_here(backend: str) -> bool:
    """Whether lm-eval's backend of this name loads a folder on this machine through transformers."""
    return backend in _TRANSFORMERS_BACKENDS


def find_model(model: str, backend: str) -> ModelSource:
    """Find the files of a model and hash them.

    Raises:
        EvaluationError: transformers is to run it, and it is no folder with weights.
    """
    folder = Path(model)
    if not folder.is_dir():
        if not runs_here(backend):
            return ModelSource(model, None, {})
        if not (is_hub_id(model) or folder.is_file()):
            raise EvaluationError(f"{model}: no such folder; give the folder of a checkpoint, or a hub id")
        folder = model_folder(model)
    found = hash_folder(folder)
    if found.weights is None:
        raise EvaluationError(
            f"{model}: holds no weight files ({', '.join(WEIGHT_SUFFIXES)}); give the folder of a checkpoint"
        )
    return ModelSource(str(folder.absolute()), found.weights, found.other_files)
