"""The same repair on models in memory: two state dicts, or two torch modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.dtypes import NUMPY_DTYPES, all_finite
from deltamend.checkpoint.manifest import MatrixRepair, kept_energy_of, realised_error_of, undone_by_rounding_of
from deltamend.checkpoint.quantised import refuse_quantised
from deltamend.errors import FilterError, PairingError, UsageError, option
from deltamend.inputs.pairing import Pairing, TensorPair, pair_tensors
from deltamend.inputs.renaming import prefix_rule, renamed
from deltamend.machine.threads import Workers
from deltamend.matrices.buffers import Array, Buffers
from deltamend.matrices.items import SidesReader
from deltamend.matrices.views import MemoryMatrix, StoredMatrix
from deltamend.methods.method import Method
from deltamend.progress import Progress, ignore_progress
from deltamend.repairing.options import AUTO, RepairKeywords, RepairOptions, make_options
from deltamend.repairing.outputs import WrittenTensor
from deltamend.repairing.plan import assign_methods
from deltamend.repairing.rules import MethodChoice
from deltamend.repairing.run import check_device
from deltamend.repairing.tensors import TensorRepairer

if TYPE_CHECKING:
    # Whoever has tensors has torch; whoever repairs folders need not wait for its import.
    import torch

_FLOATS = {"torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float32": "F32", "torch.float64": "F64"}
# What quantised weights come as.
_CODES = {"torch.uint8": "U8", "torch.int8": "I8", "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2"}


@dataclass(frozen=True)
class RepairedInMemory:
    """What was done to each matrix of a model in memory.

    Attributes:
        records: one for each tensor that was given to a method, by its name.
        only_in_base: names that only BASE has; they are left out.
    """

    records: dict[str, MatrixRepair]
    only_in_base: tuple[str, ...]

    @property
    def kept_energy(self) -> float:
        """Σ‖Δ*‖² / Σ‖Δ‖² over all matrices; 1 where every delta is zero."""
        return kept_energy_of(self._once)

    @property
    def realised_error(self) -> float:
        """‖cast(W*) − W_base − Δ*‖ / ‖Δ*‖ over all matrices; 0 where Δ* is zero."""
        return realised_error_of(self._once)

    @property
    def undone_by_rounding(self) -> float | None:
        """‖cast(W*) − W_base − Δ*‖ / ‖Δ − Δ*‖ over all matrices; None where nothing was taken away."""
        return undone_by_rounding_of(self._once)

    @property
    def _once(self) -> list[MatrixRepair]:
        """The records, each once: tensors that share their memory share their record."""
        return list({id(record): record for record in self.records.values()}.values())


@dataclass(frozen=True)
class RepairedStateDict(RepairedInMemory):
    """The repaired tensors by name, in the order of FINETUNED, and what was done to each matrix.

    Attributes:
        tensors: new tensors for the matrices; all others are the fine-tuned model's own, not copies.
    """

    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class RepairedModule(RepairedInMemory):
    """A repaired model, and what was done to each of its matrices.

    Attributes:
        module: a repaired copy of the fine-tuned model, with its dtypes and device.
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
        base: tensors by name, of any floating-point dtype and on any device.
        finetuned: the same names and shapes, apart from what `rename` and `configs` explain.
        device: where spectral filters run, "cpu" or a torch device such as "cuda".
        workers: tensors worked on at a time; None for one a core. The result is the same.
        configs: the two models' configs; their `vocab_size` explains a resized vocabulary, and `split_fused` reads the
            number of heads there.
        progress: called as work ends.
        options: the options of `deltamend.repair`, but for `output` and `max_shard_size`, which are about files, and
            `method="auto"`, which reads the base from its folder.

    Returns:
        Repaired matrices on the device of the fine-tuned ones, everything else as it was, and the figures.

    Raises:
        CheckpointError: a tensor is quantised.
        PairingError: the two do not belong together.
        UsageError: an unknown method or an invalid option, or tensors that share their memory are treated differently.
        FilterError: NaN or Inf in a tensor, or a filter failed.

    Source: as for `deltamend.repair`.
    """
    wanted = _options_in_memory(options)
    check_device(device)
    choice = MethodChoice(wanted.method, wanted.parameters, wanted.rules, wanted.vectors)
    ties = _first_names(finetuned)
    described = _described(base, _first_names(base)), _described(finetuned, {})
    for side, tensors_of in zip(("BASE", "FINETUNED"), described, strict=True):
        refuse_quantised(tensors_of.values(), side)
    shown = _shown_as(described[0], described[1], wanted.rename)
    pairing = pair_tensors(
        shown, described[1], configs, include=wanted.include, exclude=wanted.exclude, split_fused=wanted.split_fused
    )
    pairing, methods = assign_methods(pairing, choice)
    _refuse_split_ties(ties, methods)
    pairs = _once(pairing, ties)
    output = MemoryOutput(finetuned, wanted.dtype_name)
    reader = SidesReader(_TensorsInMemory(base), _TensorsInMemory(finetuned))
    repairer = TensorRepairer(reader, methods, device=device, rounding=wanted.rounding)
    report = progress or ignore_progress
    with Workers(workers) as team:
        repairer.survey(pairs, team.map)
        done = team.map(lambda pair: (pair.name, output.write(pair, repairer).done), pairs)
        for number, (name, _) in enumerate(done, start=1):
            report(name, number / len(done))
    records = {name: record for name, record in done if name in methods}
    tensors = dict(finetuned) | output.tensors
    for name, first in ties.items():
        if first in records:
            tensors[name], records[name] = tensors[first], records[first]
    return RepairedStateDict(records, pairing.only_in_base, tensors)


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
        base: the model that fine-tuning started from; a transformers `config` on it is used where there is one.
        finetuned: its descendant, likewise.
        device: where spectral filters run, "cpu" or a torch device such as "cuda".
        workers: tensors worked on at a time; None for one a core. The result is the same.
        progress: called as work ends.
        options: as for `repair_state_dict`; `out_dtype` decides what the repaired values are rounded to before they are
            loaded into the copy, which keeps its own dtypes.

    Returns:
        A repaired copy of `finetuned`, with its dtypes and device, and the figures.

    Raises:
        CheckpointError: a tensor is quantised.
        PairingError: the two do not belong together.
        UsageError: an unknown method or an invalid option, or tensors that share their memory are treated differently.
        FilterError: NaN or Inf in a tensor, or a filter failed.

    Source: as for `deltamend.repair`.
    """
    repaired = repair_state_dict(
        base.state_dict(),
        finetuned.state_dict(),
        device=device,
        workers=workers,
        configs=(_config(base), _config(finetuned)),
        progress=progress,
        **options,
    )
    result = copy.deepcopy(finetuned)
    result.load_state_dict(repaired.tensors)
    return RepairedModule(repaired.records, repaired.only_in_base, result)


class MemoryOutput:
    """Collects repaired tensors; as `TensorOutput`.

    Args:
        finetuned: the fine-tuned tensors, whose shapes and devices are taken over.
        dtype: safetensors name of the dtype of the repaired ones; None for that of each fine-tuned one.
    """

    def __init__(self, finetuned: Mapping[str, torch.Tensor], dtype: str | None) -> None:
        self._finetuned, self._dtype = finetuned, dtype
        self.tensors: dict[str, torch.Tensor] = {}

    def write(self, pair: TensorPair, repairer: TensorRepairer) -> WrittenTensor:
        """See `TensorOutput.write`; a tensor that no method is given stays the fine-tuned model's own.

        Raises:
            FilterError: it holds NaN or Inf.
        """
        if pair.action == "keep":
            if not all_finite(_array(self._finetuned[pair.name])):
                raise FilterError(f"tensor {pair.name!r} holds NaN or Inf in FINETUNED; give an undamaged model")
            return WrittenTensor(MatrixRepair(outcome="kept", reason=""), (), pair.finetuned.dtype)
        dtype = self._dtype or pair.finetuned.dtype
        sink = _ArraySink(pair.finetuned, dtype)
        done, parts = repairer.repair(pair, sink)
        like = self._finetuned[pair.name]
        self.tensors[pair.name] = _tensor(sink.array).view(like.shape).to(like.device)
        return WrittenTensor(done, parts, dtype)


@dataclass(frozen=True)
class _TensorsInMemory:
    """The tensors of a state dict, as `TensorSource`."""

    tensors: Mapping[str, torch.Tensor]

    def matrix(self, tensor: StoredTensor, buffers: Buffers, use: str) -> MemoryMatrix:  # noqa: ARG002 - nothing is read
        """See `TensorSource.matrix`."""
        return MemoryMatrix(_array(self.tensors[tensor.own_name]).reshape(-1, StoredMatrix.view_shape(tensor)[1]))


class _ArraySink:
    """Collects one repaired matrix, as `Sink`; what is no matrix as one column."""

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
            f"{option('method', AUTO)}: the recommended method runs the base, which it loads from a folder; call "
            "deltamend.recommend(FOLDER) and pass on its method, parameters and vectors"
        )
    return options


def _shown_as(
    base: Mapping[str, StoredTensor], finetuned: Mapping[str, StoredTensor], rename: str | None
) -> dict[str, StoredTensor]:
    """The tensors of BASE under the names that FINETUNED has for them."""
    rule = prefix_rule(base, finetuned, rename)
    if rule is None:
        return dict(base)
    shown: dict[str, StoredTensor] = {}
    for tensor in base.values():
        name = renamed(tensor.name, rule)
        if name in shown:
            raise PairingError(
                f"two tensors of BASE would be called {name!r}; give another {option('rename', 'OLD=NEW')}"
            )
        shown[name] = replace(tensor, name=name, origin=tensor.own_name)
    return shown


def _first_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Every name to the first one of the same memory, such as that of a tied embedding for its head."""
    first: dict[object, str] = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()), name)
        if tensor.numel()
        else name
        for name, tensor in tensors.items()
    }


def _once(pairing: Pairing, first_names: Mapping[str, str]) -> list[TensorPair]:
    """What shares its memory is one matrix and repaired once: filtered under each of its names, the last would win."""
    tied = {first for name, first in first_names.items() if name != first}
    own = [pair for pair in pairing.pairs if first_names[pair.name] == pair.name]
    # An embedding that FINETUNED ties to its head, too, is given what the head is.
    return [replace(pair, inputs_of=pair.inputs_of or None) if pair.name in tied else pair for pair in own]


def _refuse_split_ties(first_names: Mapping[str, str], methods: Mapping[str, Method]) -> None:
    """Tensors that share their memory, such as a tied embedding and head, can only be repaired as one.

    Raises:
        UsageError: a selection or a rule treats them differently.
    """
    for name, other in first_names.items():
        if methods.get(name) != methods.get(other):
            raise UsageError(
                f"{other!r} and {name!r} share their memory but are treated differently; select both or neither"
            )


def _array(tensor: torch.Tensor) -> Array:
    """The same values as numpy sees them; numpy has no bfloat16 of its own, so its bits are passed on."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.uint16).numpy().view(NUMPY_DTYPES["BF16"])
    return plain.numpy()


def _tensor(array: Array) -> torch.Tensor:
    """The inverse of `_array`, on the CPU."""
    import torch

    if array.dtype == NUMPY_DTYPES["BF16"]:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _described(tensors: Mapping[str, torch.Tensor], origins: Mapping[str, str]) -> dict[str, StoredTensor]:
    """The tensors as pairing sees them; dtypes other than the floating-point ones are all the same to it."""
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
    """The parts of a transformers model's config that the pairing of tensors asks for."""
    config = getattr(module, "config", None)
    to_dict = getattr(config, "to_dict", None)
    return dict(to_dict()) if callable(to_dict) else {}
