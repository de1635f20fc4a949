"""The same repair on models in memory: two state dicts, or two torch modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from deltamend.checkpoint.checkpoint_folder import StoredTensor
from deltamend.checkpoint.dtypes import NUMPY_DTYPES, all_finite
from deltamend.checkpoint.manifest import MatrixRepair
from deltamend.checkpoint.quantised import refuse_quantised
from deltamend.errors import FilterError, UsageError
from deltamend.inputs.pairing import Submatrix, TensorPair, pair_tensors
from deltamend.machine.threads import one_thread_each
from deltamend.matrices.buffers import Array, Buffers
from deltamend.matrices.views import Matrix, MemoryMatrix, StoredMatrix
from deltamend.methods.method import Method
from deltamend.repairing.one_matrix import Job, Survey, open_part, repair_parts
from deltamend.repairing.plan import assign_methods, out_dtype_name
from deltamend.repairing.rules import MethodChoice, Rule, Vectors, read_rules

if TYPE_CHECKING:
    # Whoever has tensors has torch; whoever repairs folders need not wait for its import.
    import torch

_Item = TypeVar("_Item")

_FLOATS = {"torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float32": "F32", "torch.float64": "F64"}
# What quantised weights come as.
_CODES = {"torch.uint8": "U8", "torch.int8": "I8", "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2"}


@dataclass(frozen=True)
class RepairedStateDict:
    """The repaired tensors by name, in the order of FINETUNED, and what was done to each matrix.

    Attributes:
        tensors: new tensors for the matrices; all others are the fine-tuned model's own, not copies.
        records: one for each matrix that was given to the method.
        only_in_base: names that only BASE has; they are left out.
    """

    tensors: dict[str, torch.Tensor]
    records: dict[str, MatrixRepair]
    only_in_base: tuple[str, ...]


def repair_state_dict(
    base: Mapping[str, torch.Tensor],
    finetuned: Mapping[str, torch.Tensor],
    *,
    method: str | Method = "dg-hard",
    parameters: Mapping[str, object] | None = None,
    include: str | None = None,
    exclude: str | None = None,
    out_dtype: str | None = None,
    rules: Sequence[Rule | Mapping[str, object]] = (),
    vectors: Vectors = "finetuned",
    device: str = "cpu",
    configs: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
) -> RepairedStateDict:
    """Repair a state dict against its base; neither is modified.

    Args:
        base: tensors by name, of any floating-point dtype and on any device.
        finetuned: the same names and shapes, apart from what `configs` explain.
        method: name of a method, or one made with `get_method`.
        parameters: the method's parameters, when `method` is a name.
        include: regular expression; matrices whose name it does not find are kept as fine-tuned.
        exclude: regular expression; matrices whose name it finds are kept as fine-tuned.
        out_dtype: "bf16", "fp16" or "fp32" for the repaired matrices; None keeps each one's own.
        rules: another method or other parameters for some of the tensors; see `rules.Rule`.
        vectors: what parameters that are no matrices follow; see `repair`.
        device: where spectral filters run.
        configs: the two models' configs; their `vocab_size` explains a resized vocabulary.

    Returns:
        Repaired matrices on the device of the fine-tuned ones, everything else as it was.

    Raises:
        CheckpointError: a tensor is quantised.
        PairingError: the two do not belong together.
        UsageError: unknown method or wrong parameter, or tensors that share their memory are treated differently.
        FilterError: NaN or Inf in a tensor, or a filter failed.
        UsageError: `out_dtype` is not one that can be written.
    """
    dtype_name = out_dtype_name(out_dtype)
    choice = MethodChoice(method, parameters, read_rules(rules), vectors)
    first_names = _first_names(base), _first_names(finetuned)
    described = _described(base, first_names[0]), _described(finetuned, {})
    for side, tensors_of in zip(("BASE", "FINETUNED"), described, strict=True):
        refuse_quantised(tensors_of.values(), side)
    pairing = pair_tensors(*described, configs, include=include, exclude=exclude)
    pairing, methods = assign_methods(pairing, choice)
    _refuse_split_ties(first_names[1], methods)
    pairs = _once(pairing.pairs, first_names[1])
    tensors = dict(finetuned)
    records: dict[str, MatrixRepair] = {}
    buffers = Buffers()
    surveyed: dict[Method, Any] = {}

    def opened(pair: TensorPair) -> tuple[MemoryMatrix, MemoryMatrix, Job]:
        view = StoredMatrix.view_shape(pair.finetuned)
        ours, theirs = (MemoryMatrix(_array(side[pair.name]).reshape(-1, view[1])) for side in (base, finetuned))
        rows = pair.rows if pair.is_matrix else theirs.shape[0]
        method = methods[pair.name]
        job = Job(pair.name, rows, method, device, surveyed.get(method), inputs_of=pair.inputs_of)
        return ours, theirs, job

    def opened_part(item: tuple[TensorPair, Submatrix | None]) -> tuple[Matrix, Matrix, Job]:
        pair, part = item
        ours, theirs, job = opened(pair)
        return (ours, theirs, job) if part is None else open_part((ours, theirs), job, part, buffers)

    def one_by_one(function: Callable[[_Item], None], items: Sequence[_Item]) -> None:
        for item in items:
            function(item)

    with one_thread_each():
        for chosen in set(methods.values()):
            own = [pair for pair in pairs if methods.get(pair.name) == chosen]
            items = [(pair, part) for pair in own for part in pair.submatrices or (None,)]
            surveyed[chosen] = chosen.survey(Survey(items, opened_part, lambda: buffers, one_by_one))
        for pair in pairs:
            if pair.name not in methods:
                if not all_finite(_array(finetuned[pair.name])):
                    raise FilterError(f"tensor {pair.name!r} holds NaN or Inf in FINETUNED; give an undamaged model")
            else:
                like = finetuned[pair.name]
                sink = _MemorySink(pair.finetuned, dtype_name or pair.finetuned.dtype)
                ours, theirs, job = opened(pair)
                records[pair.name] = repair_parts((ours, theirs), pair, job, sink, buffers)[0]
                tensors[pair.name] = _tensor(sink.array).view(like.shape).to(like.device)
    for name, first in first_names[1].items():
        if first in records:
            tensors[name], records[name] = tensors[first], records[first]
    return RepairedStateDict(tensors, records, pairing.only_in_base)


def repair_module(
    base: torch.nn.Module,
    finetuned: torch.nn.Module,
    *,
    method: str | Method = "dg-hard",
    parameters: Mapping[str, object] | None = None,
    include: str | None = None,
    exclude: str | None = None,
    rules: Sequence[Rule | Mapping[str, object]] = (),
    vectors: Vectors = "finetuned",
    device: str = "cpu",
) -> tuple[torch.nn.Module, dict[str, MatrixRepair]]:
    """Repair a loaded model against its loaded base; neither is modified.

    Arguments and errors are those of `repair_state_dict`; a `config` with `vocab_size` on the modules is used.

    Returns:
        A repaired copy of `finetuned`, with its dtypes and device, and what was done to each matrix.
    """
    repaired = repair_state_dict(
        base.state_dict(),
        finetuned.state_dict(),
        method=method,
        parameters=parameters,
        include=include,
        exclude=exclude,
        rules=rules,
        vectors=vectors,
        device=device,
        configs=(_config(base), _config(finetuned)),
    )
    result = copy.deepcopy(finetuned)
    result.load_state_dict(repaired.tensors)
    return result, repaired.records


class _MemorySink:
    """Collects a repaired matrix; what is no matrix as one column."""

    def __init__(self, like: StoredTensor, dtype_name: str) -> None:
        self.dtype = NUMPY_DTYPES[dtype_name]
        self.array = np.empty(StoredMatrix.view_shape(like), self.dtype)

    def write_rows(self, start: int, values: Array) -> None:
        """See `Sink.write_rows`."""
        self.array[start : start + values.shape[0]] = values

    def write_columns(self, start: int, values: Array, row: int = 0) -> None:
        """See `Sink.write_columns`."""
        self.array[row : row + values.shape[0], start : start + values.shape[1]] = values


def _first_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Every name to the first one of the same memory, such as that of a tied embedding for its head."""
    first: dict[object, str] = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()), name)
        if tensor.numel()
        else name
        for name, tensor in tensors.items()
    }


def _once(pairs: Sequence[TensorPair], first_names: Mapping[str, str]) -> list[TensorPair]:
    """What shares its memory is one matrix and repaired once: filtered under each of its names, the last would win."""
    tied = {first for name, first in first_names.items() if name != first}
    own = [pair for pair in pairs if first_names[pair.name] == pair.name]
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
    """What of a transformers model's config pairing asks for."""
    config = getattr(module, "config", None)
    names = ("model_type", "vocab_size", "architectures")
    return {name: value for name in names if (value := getattr(config, name, None)) is not None}
