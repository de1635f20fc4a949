"""Repair models in memory: two state dicts, or two torch modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.dtypes import NUMPY_DTYPES, all_finite
from deltamend.checkpoint.manifest import (
    CoverageRecord,
    MatrixRepair,
    ParentRecord,
    kept_energy_of,
    realised_error_of,
    undone_by_rounding_of,
)
from deltamend.checkpoint.quantised import refuse_quantised
from deltamend.errors import FilterError, UsageError, option
from deltamend.inputs.model_layout import Parameters, layout_of, layout_of_module
from deltamend.inputs.pairing import Pairing, TensorPair, pair_tensors
from deltamend.inputs.parentage import parent_of
from deltamend.inputs.renaming import find_renaming
from deltamend.inputs.weight_samples import Values
from deltamend.machine.threads import Workers
from deltamend.matrices.buffers import Array, Buffers
from deltamend.matrices.update_walk import SidesReader
from deltamend.matrices.views import MemoryMatrix, StoredMatrix
from deltamend.methods.method import Method
from deltamend.progress import Progress, count_reporter, ignore_progress
from deltamend.repairing.options import AUTO, RepairKeywords, RepairOptions, make_options
from deltamend.repairing.outputs import WrittenTensor
from deltamend.repairing.plan import assign_methods
from deltamend.repairing.rounding import check_rounding
from deltamend.repairing.rules import MethodChoice
from deltamend.repairing.run import check_device
from deltamend.repairing.tensor_repairer import TensorRepairer
from deltamend.repairing.torch_arrays import numpy_array, torch_tensor

if TYPE_CHECKING:
    # Its import is slow, and a repair of folders does not need it. Whoever passes tensors has imported it already.
    import torch

_FLOATS = {"torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float32": "F32", "torch.float64": "F64"}
# The dtypes that quantised weights are stored in.
_CODES = {"torch.uint8": "U8", "torch.int8": "I8", "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2"}


@dataclass(frozen=True)
class RepairedInMemory:
    """The report of a repair of a model in memory.

    Attributes:
        records: what was done to each tensor that has a method, by the name of the tensor.
        only_in_base: the names of tensors that only BASE has; they are not in the result.
        notes: how the names of BASE were matched, where they are not those of FINETUNED.
        coverage: how much of FINETUNED was repaired.
        parent: whether BASE is the parent of FINETUNED, by a sample of the weights.
    """

    records: dict[str, MatrixRepair]
    only_in_base: tuple[str, ...]
    notes: tuple[str, ...]
    coverage: CoverageRecord
    parent: ParentRecord

    @property
    def kept_energy(self) -> float:
        """The share of the update's energy that was kept: Σ‖Δ*‖² / Σ‖Δ‖² over all matrices; 1 if every delta is zero."""
        return kept_energy_of(self._once)

    @property
    def realised_error(self) -> float:
        """How much rounding changed the kept update: ‖cast(W*) − W_base − Δ*‖ / ‖Δ*‖ over all matrices; 0 if Δ* is zero."""
        return realised_error_of(self._once)

    @property
    def undone_by_rounding(self) -> float | None:
        """The size of the rounding against what was removed: ‖cast(W*) − W_base − Δ*‖ / ‖Δ − Δ*‖; None if nothing was."""
        return undone_by_rounding_of(self._once)

    @property
    def _once(self) -> list[MatrixRepair]:
        """Every record once, because tensors that share their memory also share their record."""
        return list({id(record): record for record in self.records.values()}.values())


@dataclass(frozen=True)
class RepairedStateDict(RepairedInMemory):
    """A repaired state dict, and the report of the repair.

    Attributes:
        tensors: the tensors by name, in the order of FINETUNED. Repaired tensors are new; all others are the tensors of the
            fine-tuned model themselves, not copies.
    """

    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class RepairedModule(RepairedInMemory):
    """A repaired model, and the report of the repair.

    Attributes:
        module: a repaired copy of the fine-tuned model, with the same dtypes and on the same device.
    """

    module: torch.nn.Module


def repair_state_dict(
    base: Mapping[str, torch.Tensor],
    finetuned: Mapping[str, torch.Tensor],
    *,
    device: str = "cpu",
    workers: int | None = 1,
    configs: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
    progress: Progress | None = None,
    **options: Unpack[RepairKeywords],
) -> RepairedStateDict:
    """Repair a state dict against its base; neither is modified.

    Args:
        base: the base model's tensors by name, of any floating-point dtype and on any device.
        finetuned: the fine-tuned model's tensors. Names and shapes must be those of the base, unless `rename` or `configs`
            explains a difference.
        device: where spectral filters run, "cpu" or a torch device such as "cuda".
        workers: number of tensors worked on at a time; None for one per core. It does not change the result.
        configs: the configs of the base and the fine-tuned model. Their `vocab_size` explains a resized vocabulary,
            `split_fused` finds the number of attention heads there, and with `model_type` they say what tensors are whose names
            and shapes do not.
        progress: callback for the name of each finished tensor and the share of the tensors that are done.
        options: the options of `deltamend.repair`, except for `output` and `max_shard_size`, which concern files, and
            `method="auto"`, which loads the base from its folder.

    Returns:
        The repaired tensors, on the devices of the fine-tuned ones, together with all other tensors, and the report.

    Raises:
        CheckpointError: a tensor is quantised.
        PairingError: the two models do not belong together.
        UsageError: the method is unknown, an option is invalid, or tensors that share their memory would be treated
            differently.
        FilterError: a tensor holds NaN or Inf, or a filter failed.

    Source: as for `deltamend.repair`.
    """
    return _repaired(base, finetuned, None, device, workers, configs, progress, options)


def _repaired(
    base: Mapping[str, torch.Tensor],
    finetuned: Mapping[str, torch.Tensor],
    layout: Parameters | None,
    device: str,
    workers: int | None,
    configs: tuple[Mapping[str, Any], Mapping[str, Any]],
    progress: Progress | None,
    options: RepairKeywords,
) -> RepairedStateDict:
    """See `repair_state_dict`; `layout` says what each tensor is to its model, or None where the configs have to."""
    wanted = _options_in_memory(options)
    check_device(device)
    choice = MethodChoice(wanted.method, wanted.parameters, wanted.rules, wanted.vectors)
    ties = _first_names(finetuned)
    described = _described(base, _first_names(base)), _described(finetuned, {})
    for side, tensors_of in zip(("BASE", "FINETUNED"), described, strict=True):
        refuse_quantised(tensors_of.values(), side)
    renaming = find_renaming(*described, wanted.rename, (_entries_of(base), _entries_of(finetuned)))
    shown, notes = (described[0], ()) if renaming is None else (renaming.shown, renaming.notes)
    pairing = pair_tensors(
        shown,
        described[1],
        configs,
        include=wanted.include,
        exclude=wanted.exclude,
        split_fused=wanted.split_fused,
        layout=layout or layout_of(configs[1], {name: tensor.shape for name, tensor in described[1].items()}),
        allow_unpaired=wanted.allow_unpaired,
    )
    values = _entries_of(base), _entries_of(finetuned)
    parent = parent_of(pairing.pairs, values, allow_unrelated=wanted.allow_unrelated)
    pairing, methods = assign_methods(pairing, choice)
    check_rounding(wanted.rounding, methods.values())
    _refuse_split_ties(ties, methods)
    pairs = _once(pairing, ties)
    output = MemoryOutput(finetuned, wanted.dtype_name)
    reader = SidesReader(_TensorsInMemory(base), _TensorsInMemory(finetuned))
    repairer = TensorRepairer(reader, methods, device=device, rounding=wanted.rounding)
    report = count_reporter(progress or ignore_progress, len(pairs))

    def repair_one(pair: TensorPair) -> tuple[str, MatrixRepair]:
        done = output.write(pair, repairer).done
        report(pair.name)
        return pair.name, done

    with Workers(workers) as team:
        repairer.survey(pairs, team.map)
        done = team.map(repair_one, pairs)
    records = {name: record for name, record in done if name in methods}
    tensors = dict(finetuned) | output.tensors
    for name, first in ties.items():
        if first in records:
            tensors[name], records[name] = tensors[first], records[first]
    return RepairedStateDict(records, pairing.only_in_base, notes, pairing.coverage, parent, tensors)


def repair_module(
    base: torch.nn.Module,
    finetuned: torch.nn.Module,
    *,
    device: str = "cpu",
    workers: int | None = 1,
    progress: Progress | None = None,
    **options: Unpack[RepairKeywords],
) -> RepairedModule:
    """Repair a loaded model against its loaded base; neither is modified.

    Args:
        base: the model that fine-tuning started from. If it is a transformers model, its `config` is used.
        finetuned: the fine-tuned model, likewise.
        device: where spectral filters run, "cpu" or a torch device such as "cuda".
        workers: number of tensors worked on at a time; None for one per core. It does not change the result.
        progress: callback for the name of each finished tensor and the share of the tensors that are done.
        options: as for `repair_state_dict`. The repaired values are rounded to `out_dtype` before they are loaded into the
            copy, but the copy keeps the dtypes of `finetuned`.

    Returns:
        A repaired copy of `finetuned`, with the same dtypes and on the same device, and the report.

    Raises:
        CheckpointError: a tensor is quantised.
        PairingError: the two models do not belong together.
        UsageError: the method is unknown, an option is invalid, or tensors that share their memory would be treated
            differently.
        FilterError: a tensor holds NaN or Inf, or a filter failed.

    Source: as for `deltamend.repair`.
    """
    repaired = _repaired(
        base.state_dict(),
        finetuned.state_dict(),
        layout_of_module(finetuned),
        device,
        workers,
        (_config(base), _config(finetuned)),
        progress,
        options,
    )
    result = copy.deepcopy(finetuned)
    result.load_state_dict(repaired.tensors)
    return RepairedModule(
        repaired.records, repaired.only_in_base, repaired.notes, repaired.coverage, repaired.parent, result
    )


class MemoryOutput:
    """Collects repaired tensors in memory; an implementation of `TensorOutput`.

    Args:
        finetuned: the fine-tuned tensors; the repaired ones get their shapes and devices.
        dtype: the dtype of the repaired tensors, by its name in safetensors files; None to keep that of each fine-tuned one.
    """

    def __init__(self, finetuned: Mapping[str, torch.Tensor], dtype: str | None) -> None:
        self._finetuned, self._dtype = finetuned, dtype
        self.tensors: dict[str, torch.Tensor] = {}

    def write(self, pair: TensorPair, repairer: TensorRepairer) -> WrittenTensor:
        """See `TensorOutput.write`. A tensor without a method is not copied.

        Raises:
            FilterError: the tensor holds NaN or Inf, or its filter failed.
        """
        if pair.action == "keep":
            if not all_finite(numpy_array(self._finetuned[pair.name])):
                raise FilterError(f"tensor {pair.name!r} holds NaN or Inf in FINETUNED; give an undamaged model")
            return WrittenTensor(MatrixRepair(outcome="kept", reason=""), (), pair.finetuned.dtype)
        dtype = self._dtype or pair.finetuned.dtype
        sink = _ArraySink(pair.finetuned, dtype)
        done, parts = repairer.repair(pair, sink)
        like = self._finetuned[pair.name]
        self.tensors[pair.name] = torch_tensor(sink.array).view(like.shape).to(like.device)
        return WrittenTensor(done, parts, dtype)


@dataclass(frozen=True)
class _TensorsInMemory:
    """The tensors of a state dict; an implementation of `TensorSource`."""

    tensors: Mapping[str, torch.Tensor]

    def matrix(self, tensor: StoredTensor, buffers: Buffers, use: str) -> MemoryMatrix:  # noqa: ARG002 - nothing is read
        """See `TensorSource.matrix`."""
        return MemoryMatrix(numpy_array(self.tensors[tensor.own_name]).reshape(-1, StoredMatrix.view_shape(tensor)[1]))


class _ArraySink:
    """Collects one repaired matrix; an implementation of `Sink`. A tensor that is not a matrix is stored as one column."""

    def __init__(self, like: StoredTensor, dtype_name: str) -> None:
        self.dtype = NUMPY_DTYPES[dtype_name]
        self.array = np.empty(StoredMatrix.view_shape(like), self.dtype)

    def write_rows(self, start: int, values: Array) -> None:
        """See `Sink.write_rows`."""
        self.array[start : start + values.shape[0]] = values

    def write_columns(self, start: int, values: Array, row: int = 0) -> None:
        """See `Sink.write_columns`."""
        self.array[row : row + values.shape[0], start : start + values.shape[1]] = values


def _options_in_memory(given: RepairKeywords) -> RepairOptions:
    options = make_options(RepairOptions, given)
    for name in ("output", "max_shard_size"):
        if getattr(options, name) != RepairOptions.model_fields[name].default:
            raise UsageError(f"{option(name)}: tensors in memory are not written to files; leave this option out")
    if options.method == AUTO:
        raise UsageError(
            f"{option('method', AUTO)}: to recommend a method both models must be run, and they can only be loaded from folders; "
            "call deltamend.recommend(BASE, FINETUNED) and pass the method, parameters and vectors that it returns"
        )
    return options


def _entries_of(tensors: Mapping[str, torch.Tensor]) -> Values:
    """Read entries of a state dict, counted row by row."""

    def read(tensor: StoredTensor, start: int, stop: int) -> Array:
        return numpy_array(tensors[tensor.own_name].reshape(-1)[start:stop])

    return read


def _first_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Map the name of every tensor to the first name of the same memory, such as a tied head's name to the embedding's."""
    first: dict[object, str] = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()), name)
        if tensor.numel()
        else name
        for name, tensor in tensors.items()
    }


def _once(pairing: Pairing, first_names: Mapping[str, str]) -> list[TensorPair]:
    """List the tensors to repair, in which tensors that share their memory appear once, under their first name."""
    tied = {first for name, first in first_names.items() if name != first}
    own = [pair for pair in pairing.pairs if first_names[pair.name] == pair.name]
    # The input of an embedding that FINETUNED ties to its head is also the input of the head.
    return [replace(pair, inputs_of=pair.inputs_of or None) if pair.name in tied else pair for pair in own]


def _refuse_split_ties(first_names: Mapping[str, str], methods: Mapping[str, Method]) -> None:
    """Refuse to treat tensors that share their memory, such as a tied embedding and head, in different ways.

    Raises:
        UsageError: a selection or a rule treats them differently.
    """
    for name, other in first_names.items():
        if methods.get(name) != methods.get(other):
            raise UsageError(
                f"{other!r} and {name!r} share their memory but would be treated differently; select both or neither"
            )


def _described(tensors: Mapping[str, torch.Tensor], origins: Mapping[str, str]) -> dict[str, StoredTensor]:
    """Describe the tensors as if they were stored in a checkpoint, which is what the pairing of tensors works on."""
    return {
        name: StoredTensor(
            name,
            (_FLOATS | _CODES).get(str(tensor.dtype), str(tensor.dtype)),
            tuple(tensor.shape),
            "",
            0,
            tensor.nbytes,
            origin=origins.get(name),
        )
        for name, tensor in tensors.items()
    }


def _config(module: torch.nn.Module) -> dict[str, Any]:
    """The config of a model as a dict: all of a transformers config, of any other what the pairing of tensors asks for."""
    config = getattr(module, "config", None)
    to_dict = getattr(config, "to_dict", None)
    # As attributes, because a config may compute them: `to_dict` then lacks them.
    names = ("model_type", "vocab_size", "architectures")
    known = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    return {**(to_dict() if callable(to_dict) else {}), **known}
