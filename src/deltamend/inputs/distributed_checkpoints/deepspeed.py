"""Folders of DeepSpeed's ZeRO, stages 1 to 3: the weights in fp32, put together as DeepSpeed's own zero_to_fp32 does.

The format (DeepSpeed, `utils/zero_to_fp32.py`): `mp_rank_00_model_states.pt` or, in stage 3,
`zero_pp_rank_R_mp_rank_00_model_states.pt` holds `param_shapes`, the shapes of the trained parameters group by group, beside
buffers and frozen parameters; `zero_pp_rank_R_mp_rank_00_optim_states.pt` holds rank R's part of the weights in fp32, flat. In
stages 1 and 2 the parts of a group, one after another, are its parameters, one after another. In stage 3 every parameter is cut
into as many equal parts as there are ranks, and a rank's flat tensors, one after another, are its parts of all parameters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltamend.checkpoint.checkpoint_folder import Checkpoint, StoredTensor
from deltamend.checkpoint.torch_archive import ArchivedTensor, read_torch_archive
from deltamend.errors import CheckpointError
from deltamend.inputs.distributed_checkpoints.assembled import (
    Parts,
    Span,
    Spans,
    checkpoint_of_parts,
    folder_of_config,
    show_assembled,
)

_LATEST = "latest"
_OPTIMISER = re.compile(r"(bf16_|fp16_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<part>\d+)_optim_states\.pt")
_MODEL = re.compile(r"(zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<part>\d+)_model_states\.pt")
_FLAT = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}
_INERT = (
    "deepspeed.", "argparse.Namespace", "numpy.", "_codecs.encode", "torch.device", "torch.random.", "torch.Generator",
    "transformers.", "accelerate.", "enum.", "collections.defaultdict", "collections.deque",
    *(f"builtins.{name}" for name in ("set", "frozenset", "list", "dict", "int", "float", "complex", "bytearray", "slice", "range")),
)  # fmt: skip
"""What DeepSpeed stores beside weights: scalers of the loss, settings, the state of random generators. All become inert."""

_SPREAD_EXPERTS = ("ds_autoep_layers", "autoep_layers")

Shape = tuple[int, ...]


def deepspeed_folder(path: Path) -> Path | None:
    """The folder of ZeRO files that a path means: itself, or the one that its file `latest` names; None where there is none."""
    if _files(path, _OPTIMISER):
        return path
    latest = path / _LATEST
    if latest.is_file() and latest.stat().st_size < 256:
        tag = latest.read_text(encoding="utf-8", errors="replace").strip()
        if re.fullmatch(r"[\w-][\w.-]*", tag) and _files(path / tag, _OPTIMISER):
            return path / tag
    return None


def _files(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    """Rank and path of the files of a kind, by rank."""
    if not folder.is_dir():
        return []
    found = [(pattern.fullmatch(file.name), file) for file in folder.iterdir()]
    return sorted((int(match["rank"] or 0), file) for match, file in found if match is not None)


@dataclass
class _Parts:
    """The parts found so far, by file and by a name of their own; and the files' names relative to the folder of the config."""

    home: Path
    by_file: dict[str, dict[str, ArchivedTensor]] = field(default_factory=dict)

    def add(self, path: Path, name: str, tensor: object) -> str:
        """Remember a part; the name it is found under."""
        if not isinstance(tensor, ArchivedTensor):
            raise CheckpointError(f"{path}: {name!r} is no tensor; copy the folder again")
        own = f"{path.name}:{name}"
        self.by_file.setdefault(path.relative_to(self.home).as_posix(), {})[own] = tensor
        return own


def open_deepspeed(folder: Path) -> Checkpoint:
    """Open the fp32 weights of a ZeRO folder.

    Raises:
        CheckpointError: there is no config; files of ranks are missing, damaged, would run code, or do not fit; or the model
            was split among processes (tensor or pipeline parallelism).
    """
    home = folder_of_config(folder)
    optimisers, models = _files(folder, _OPTIMISER), _files(folder, _MODEL)
    _refuse_split_models(folder)
    if not models:
        raise CheckpointError(
            f"{folder}: no *_model_states.pt, which says what the weights are called; copy the folder again"
        )
    parts = _Parts(home)
    states = [(path, _table(path, read_torch_archive(path, inert=_INERT))) for _, path in models]
    flats = [_flat_tensors(path) for _, path in optimisers]
    stages, counts = {one.stage for one in flats}, {one.ranks for one in flats}
    stage = flats[0].stage
    if len(stages) != 1 or counts != {len(optimisers)}:
        raise CheckpointError(
            f"{folder}: {len(optimisers)} files of optimiser states of ZeRO stages {sorted(stages)}, where {sorted(counts)} are said to belong together; copy the folder again"
        )
    flat = [(path, one.tensors) for (_, path), one in zip(optimisers, flats, strict=True)]
    shapes = _shapes(states[0][0], states[0][1])
    if any(states[0][1].get(key) for key in _SPREAD_EXPERTS):
        raise CheckpointError(
            f"{states[0][0]}: its experts are spread over the ranks (AutoEP); convert it with DeepSpeed's ds_to_universal.py, and that to Hugging Face's format"
        )
    try:
        placed = _placed(parts, states, flat, flats[0].paddings, (stage, shapes))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: what its files say does not fit together ({type(error).__name__}: {str(error)[:80]!a}); copy the folder again"
        ) from error
    return _assembled(folder, parts, placed, stage)


def _placed(
    parts: _Parts,
    states: list[tuple[Path, dict[Any, Any]]],
    flat: Flat,
    paddings: list[list[int]] | None,
    trained: tuple[int, list[dict[str, Shape]]],
) -> dict[str, tuple[Shape, Pieces]]:
    """Shape and pieces of every tensor: trained ones, of a stage of ZeRO and with these shapes; others; and tied ones."""
    stage, shapes = trained
    plans = _stage_3(parts, flat, shapes) if stage == 3 else _stages_1_and_2(parts, flat, shapes, paddings)
    placed = dict(plans)
    for name, shape, pieces in _others(parts, states, stage, len(flat)):
        placed.setdefault(name, (shape, pieces))
    for alias, name in _pairs(states[0][1].get("shared_params")):
        if name in placed:
            placed.setdefault(alias, placed[name])
    return placed


Pieces = list[tuple[str, int, int]]
"""Where the entries of a weight lie: name of the part, first entry in it, and how many; one after another."""


def _assembled(folder: Path, parts: _Parts, placed: Mapping[str, tuple[Shape, Pieces]], stage: int) -> Checkpoint:
    checkpoint = checkpoint_of_parts(parts.home, Parts(dict(sorted(parts.by_file.items()))))
    try:
        shown: dict[str, Any] = {}
        for name, (shape, pieces) in placed.items():
            spans = [Span(checkpoint.tensors[part], first, length) for part, first, length in pieces]
            if not spans or len({span.part.dtype for span in spans}) != 1:
                raise CheckpointError(
                    f"{folder}: tensor {name!r} has no entries, or parts of several dtypes; copy the folder again"
                )
            one: StoredTensor = spans[0].part
            shown[name] = (shape, Spans.of(checkpoint, spans), one)
        note = f"{folder.name}: {len(shown)} tensors are put together from DeepSpeed's files (ZeRO stage {stage}), trained ones in fp32"
        show_assembled(checkpoint, shown, note)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


def _refuse_split_models(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        found = _OPTIMISER.fullmatch(file.name) or _MODEL.fullmatch(file.name)
        if (found is not None and int(found["part"]) > 0) or file.name.startswith("layer_"):
            raise CheckpointError(
                f"{file}: the model was split among processes (tensor or pipeline parallelism); export it to Hugging Face's format with "
                "the framework that trained it, and give that"
            )


def _table(path: Path, found: object) -> dict[Any, Any]:
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is no file of DeepSpeed's; copy the folder again")
    return found


@dataclass(frozen=True)
class _Flat:
    """What a file of optimiser states says.

    Attributes:
        stage: of ZeRO.
        ranks: how many such files belong together.
        tensors: the rank's part of each group, flat.
        paddings: how many entries of padding follow each parameter of each group; None where there are none.
    """

    stage: int
    ranks: int
    tensors: list[ArchivedTensor]
    paddings: list[list[int]] | None


def _flat_tensors(path: Path) -> _Flat:
    state = _table(path, read_torch_archive(path, inert=_INERT)).get("optimizer_state_dict")
    state = state if isinstance(state, dict) else {}
    stage, count = state.get("zero_stage"), state.get("partition_count")
    count = max(count) if isinstance(count, list) and count else count
    flat = state.get(_FLAT.get(stage, "")) if isinstance(stage, int) else None
    if not isinstance(stage, int) or not isinstance(count, int) or not isinstance(flat, list) or not flat:
        raise CheckpointError(
            f"{path}: holds no fp32 weights of ZeRO stage 1, 2 or 3; run DeepSpeed's own `python zero_to_fp32.py FOLDER OUT`, which lies in the folder above, and give OUT"
        )
    if not all(
        isinstance(tensor, ArchivedTensor) and tensor.dtype == "F32" and len(tensor.shape) == 1 for tensor in flat
    ):
        raise CheckpointError(f"{path}: its fp32 weights are no flat fp32 tensors; copy the folder again")
    paddings = state.get("param_alignment_paddings")
    known = isinstance(paddings, list) and all(
        isinstance(group, list) and all(type(size) is int and 0 <= size < 2**48 for size in group) for group in paddings
    )
    if paddings is not None and not known:
        raise CheckpointError(f"{path}: param_alignment_paddings are no lists of numbers; copy the folder again")
    return _Flat(stage, count, flat, paddings)


def _shapes(path: Path, state: Mapping[Any, Any]) -> list[dict[str, Shape]]:
    """The shapes of the trained parameters, a table for each group."""
    groups = state.get("param_shapes")
    groups = groups if isinstance(groups, list) else [groups]
    if not groups or not all(isinstance(group, dict) for group in groups):
        raise CheckpointError(
            f"{path}: has no param_shapes; the checkpoint is of a version of DeepSpeed before 0.4, which cannot be read"
        )
    for group in groups:
        for name, shape in group.items():
            if not _is_name(name) or not _is_shape(shape):
                raise CheckpointError(
                    f"{path}: param_shapes says {str(shape)[:40]!r} of {str(name)[:60]!a}; copy the folder again"
                )
    return groups


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isprintable()


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and all(type(size) is int and 0 <= size < 2**48 for size in shape)


Flat = list[tuple[Path, list[ArchivedTensor]]]


def _stages_1_and_2(
    parts: _Parts, flat: Flat, shapes: list[dict[str, Shape]], paddings: list[list[int]] | None
) -> Iterator[tuple[str, tuple[Shape, Pieces]]]:
    """The parameters of each group follow one another in the parts of the ranks, which follow one another."""
    folder, unit = flat[0][0].parent, 2 * len(flat)
    for number, group in enumerate(shapes):
        line: Pieces = []
        for path, tensors in flat:
            if number >= len(tensors):
                raise CheckpointError(
                    f"{path}: has {len(tensors)} groups of weights, and {len(shapes)} are named; copy the folder again"
                )
            own = parts.add(path, f"group {number}", tensors[number])
            line.append((own, 0, tensors[number].shape[0]))
        gaps = [0] * len(group) if paddings is None else paddings[number] if number < len(paddings) else []
        if len(gaps) != len(group):
            raise CheckpointError(
                f"{flat[0][0]}: has paddings of {len(gaps)} weights, and {len(group)} are named; copy the folder again"
            )
        at = 0
        for (name, shape), gap in zip(group.items(), gaps, strict=True):
            yield name, (shape, _cut(line, at, math.prod(shape), folder, name))
            at += math.prod(shape) + gap
        held = sum(length for _, _, length in line)
        if -(-at // unit) != -(-held // unit):  # DeepSpeed pads to a multiple of twice the number of ranks
            raise CheckpointError(
                f"{folder}: group {number} has {held} entries, and its weights {at}; copy the folder again"
            )


def _stage_3(parts: _Parts, flat: Flat, shapes: list[dict[str, Shape]]) -> Iterator[tuple[str, tuple[Shape, Pieces]]]:
    """Each parameter has an equal part in every rank, at the same place of its flat tensors; the last part is padded."""
    ranks: list[Pieces] = []
    for path, tensors in flat:
        ranks.append([(parts.add(path, f"group {i}", tensor), 0, tensor.shape[0]) for i, tensor in enumerate(tensors)])
    at = 0
    for group in shapes:
        for name, shape in group.items():
            entries = math.prod(shape)
            each = -(-entries // len(ranks))
            pieces: Pieces = []
            for rank, line in enumerate(ranks):
                length = max(0, min(each, entries - rank * each))
                pieces += _cut(line, at, length, flat[rank][0].parent, name)
            yield name, (shape, pieces)
            at += each
    for (path, _), line in zip(flat, ranks, strict=True):
        held = sum(length for _, _, length in line)
        if held != at:
            raise CheckpointError(
                f"{path}: holds {held} entries, and the weights that are named take {at}; copy the folder again"
            )


def _cut(line: Pieces, start: int, length: int, folder: Path, name: str) -> Pieces:
    """The entries [start, start + length) of pieces that follow one another."""
    found: Pieces = []
    position, left = 0, length
    for part, first, size in line:
        begin = max(start, position)
        count = min(left, position + size - begin)
        if count > 0 and begin >= position:
            found.append((part, first + begin - position, count))
            start, left = begin + count, left - count
        position += size
    if left:
        raise CheckpointError(
            f"{folder}: the parts of the ranks end inside tensor {name!r}; a file is missing or truncated, so copy the folder again"
        )
    return found


def _others(
    parts: _Parts, states: list[tuple[Path, dict[Any, Any]]], stage: int, ranks: int
) -> Iterator[tuple[str, Shape, Pieces]]:
    """Buffers, and parameters that were frozen in training."""
    path, state = states[0]
    module = state.get("module")
    for name in state.get("buffer_names") or ():
        tensor = module.get(name) if isinstance(module, dict) else None
        if _is_name(name) and isinstance(tensor, ArchivedTensor):
            yield name, tensor.shape, [(parts.add(path, name, tensor), 0, math.prod(tensor.shape))]
    frozen = state.get("frozen_param_shapes") or {}
    for name, shape in frozen.items() if isinstance(frozen, dict) else ():
        if not _is_name(name) or not _is_shape(shape):
            raise CheckpointError(
                f"{path}: frozen_param_shapes says {str(shape)[:40]!r} of {str(name)[:60]!a}; copy the folder again"
            )
        entries = math.prod(shape)
        pieces: Pieces = []
        if stage == 3 and len(states) != ranks:
            raise CheckpointError(
                f"{path.parent}: {len(states)} files of model states of {ranks} ranks; copy the folder again"
            )
        for own, theirs in states if stage == 3 else states[:1]:
            fragment = (theirs.get("frozen_param_fragments") or {}).get(name)
            part = parts.add(own, name, fragment)
            held = math.prod(fragment.shape) if isinstance(fragment, ArchivedTensor) else 0
            pieces.append((part, 0, min(held, entries - sum(length for _, _, length in pieces))))
        if sum(length for _, _, length in pieces) != entries:
            raise CheckpointError(
                f"{path}: the parts of frozen tensor {name!r} do not make it up; copy the folder again"
            )
        yield name, shape, [piece for piece in pieces if piece[2]]


def _pairs(found: object) -> list[tuple[str, str]]:
    """Names of tied parameters, each with the one that is stored."""
    pairs = found.items() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2 and all(map(_is_name, pair))]
