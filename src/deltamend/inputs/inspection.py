"""What is in a checkpoint or an adapter, from its headers and configs alone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from deltamend.checkpoint.architecture import architecture_of, is_expert, kind_of, model_type_of, tied_head
from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.file_names import ADAPTER_CONFIG_FILE, CONFIG_FILE
from deltamend.checkpoint.json_file import read_json
from deltamend.checkpoint.quantised import is_packed
from deltamend.checkpoint.safetensors_header import read_header
from deltamend.errors import CheckpointError
from deltamend.inputs.distributed_checkpoints.folders import open_any_folder
from deltamend.inputs.model_layout import Parameter, layout_of
from deltamend.inputs.open_models import model_folder, open_checkpoint
from deltamend.inputs.resized_vocabulary import vocabulary_sizes
from deltamend.records import Record


class TensorEntry(Record):
    """One tensor."""

    name: str
    kind: str = Field(
        description="What it belongs to: embedding, head, norm, expert, attention, mlp, bias, adapter or other. By its name, and by "
        "the module that owns it where the name does not say."
    )
    dtype: str = Field(description="By its safetensors name.")
    shape: tuple[int, ...]
    file: str
    nbytes: int

    @property
    def parameters(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class Total(Record):
    """A group of tensors."""

    tensors: int
    parameters: int
    nbytes: int


class Contents(Record):
    """What is in a folder of weights."""

    folder: str = Field(description="Its name.")
    architecture: str | None
    model_type: str | None
    vocabulary: int | None = Field(description="`vocab_size` of the config, or of a part of it such as `text_config`.")
    tied: str | None = Field(description="The embedding the head shares its matrix with.")
    adapter_of: str | None = Field(description="The base an adapter names.")
    refused: str | None = Field(description="Why `deltamend repair` would refuse it, such as quantised weights.")
    tensors: tuple[TensorEntry, ...]

    @property
    def total(self) -> Total:
        """Everything."""
        return _total(self.tensors)

    def by(self, field: str) -> dict[str, Total]:
        """Totals by `kind`, `dtype` or `file`, the largest first."""
        groups: dict[str, list[TensorEntry]] = {}
        for tensor in self.tensors:
            groups.setdefault(getattr(tensor, field), []).append(tensor)
        totals = {name: _total(members) for name, members in groups.items()}
        return dict(sorted(totals.items(), key=lambda item: -item[1].nbytes))


def inspect_folder(folder: str | os.PathLike[str]) -> Contents:
    """Read the headers and configs of a folder; no weight is read.

    What `open_checkpoint` refuses, such as quantised weights or an adapter, is listed all the same where its headers can
    be read, with the reason.

    Raises:
        CheckpointError: there is no such folder, or no header that can be read.
    """
    path = model_folder(os.fspath(folder))
    config, refused = _json(path / CONFIG_FILE), _refusal(path)
    adapter = _json(path / ADAPTER_CONFIG_FILE)
    try:
        with open_any_folder(path) as checkpoint:
            tensors = list(checkpoint.tensors.values())
    except CheckpointError:
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise
        tensors = [
            StoredTensor(entry.name, entry.dtype, entry.shape, file.name, entry.start, entry.stop)
            for file in files
            for entry in read_header(file).entries
        ]
    tied = tied_head(config, [tensor.name for tensor in tensors])
    layout = layout_of(config, {tensor.name: tensor.shape for tensor in tensors if not is_packed(tensor)})
    base = adapter.get("base_model_name_or_path")
    return Contents(
        folder=Path(os.path.abspath(path)).name,  # noqa: PTH100 - resolve() would name a link's target
        architecture=architecture_of(config) or None,
        model_type=ascii(model_type_of(config))[1:-1] or None,
        vocabulary=next(vocabulary_sizes(config), None),
        tied=None if tied is None else tied[0],
        adapter_of=base if isinstance(base, str) else None,
        refused=None if adapter else refused,
        tensors=tuple(
            TensorEntry(
                name=tensor.name,
                kind=_kind(tensor.name, layout.get(tensor.name)),
                dtype=tensor.dtype,
                shape=tensor.shape,
                file=tensor.file,
                nbytes=tensor.nbytes,
            )
            for tensor in tensors
        ),
    )


def _refusal(path: Path) -> str | None:
    """Why `deltamend repair` would refuse the checkpoint; None where it would not."""
    try:
        open_checkpoint(path).close()
    except CheckpointError as error:
        return str(error)
    return None


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none."""
    try:
        return read_json(path)
    except CheckpointError:
        return {}


def _kind(name: str, parameter: Parameter | None) -> str:
    if name.startswith("base_model."):
        return "adapter"
    role = "other" if parameter is None else parameter.role
    if role in {"bias", "norm"}:
        return role
    named = "expert" if is_expert(name) else kind_of(name)
    return "embedding" if role == "embedding" and named != "head" else named


def _total(tensors: Iterable[TensorEntry]) -> Total:
    members = list(tensors)
    return Total(
        tensors=len(members),
        parameters=sum(tensor.parameters for tensor in members),
        nbytes=sum(tensor.nbytes for tensor in members),
    )
