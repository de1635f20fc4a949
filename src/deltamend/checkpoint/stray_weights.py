"""Which weight files of a folder hold its model once more, and which belong to it: modules of their own, voices, tables."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from deltamend.checkpoint.json_file import read_json_list
from deltamend.checkpoint.safetensors_header import read_header
from deltamend.errors import CheckpointError

MODULES_FILE = "modules.json"
"""Where sentence-transformers lists the modules of a model; each may have a folder with weights of its own."""

_INDEX_SUFFIX = ".index.json"
_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".tflite", ".ot"}
)
# What loaders and exporters call a file that holds a whole model, or a shard of it.
_WHOLE_MODEL = re.compile(
    r"(pytorch_model\w*|model|tf_model|flax_model|rust_model|consolidated|openvino_model|diffusion_pytorch_model"
    r"|(encoder|decoder)(_with_past)?_model\w*)([-.].*)?",
    re.IGNORECASE,
)
_WHOLE_MODEL_SUFFIXES = frozenset({".gguf", ".ckpt", ".tflite", ".msgpack", ".ot"})
_OTHER_FORMATS = frozenset({"original", "onnx", "openvino", "gguf", "coreml", "tflite"})
_TRAINING = re.compile(
    r"optimizer.*|optim_states.*|scheduler.*|scaler.*|rng_state.*|random_states.*|training_args\.bin|.*zero_pp_rank.*"
    r"|mp_rank_\d+_model_states.*|.*\.distcp|trainer_state\.json|zero_to_fp32\.py|latest|training_args\.json"
)


def modules_of(folder: Path) -> frozenset[str]:
    """The subfolders of a model that hold modules of it, by modules.json; none where there is no such file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if not (folder / MODULES_FILE).is_file():
        return frozenset()
    listed = read_json_list(folder / MODULES_FILE)
    paths = [entry.get("path") for entry in listed if isinstance(entry, dict)]
    return frozenset(str(PurePosixPath(path)) for path in paths if isinstance(path, str)) - {"."}


def reason_for_weights(path: Path, name: str, modules: Collection[str], tensors: Collection[str]) -> str:
    """Why a file of weights, or of the state of a training run, does not belong to the model; "" where it does.

    Args:
        path: the file.
        name: its path inside the folder of the model, with forward slashes.
        modules: the subfolders that hold modules of the model; see `modules_of`.
        tensors: the names of the model's own tensors.
    """
    place = PurePosixPath(name)
    if _TRAINING.fullmatch(place.name):
        return "state of the training run"
    if place.suffix.lower() not in _SUFFIXES and not name.endswith(_INDEX_SUFFIX):
        return ""
    if any(str(parent) in modules for parent in place.parents):
        return ""
    if place.parts[0].lower() in _OTHER_FORMATS and len(place.parts) > 1:
        return "the model in another format, not repaired"
    whole = _WHOLE_MODEL.fullmatch(place.stem) or place.suffix.lower() in _WHOLE_MODEL_SUFFIXES
    if whole or (place.suffix == ".safetensors" and _holds_any(path, tensors)):
        return "weights of the model in a file that its index does not name"
    return ""


def _holds_any(path: Path, tensors: Collection[str]) -> bool:
    """Whether a file holds a tensor by one of the names; a file that cannot be read holds none."""
    try:
        return any(entry.name in tensors for entry in read_header(path).entries)
    except CheckpointError:
        return False
