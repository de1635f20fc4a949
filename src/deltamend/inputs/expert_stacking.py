"""Match the experts of a mixture where one model stores them in one tensor and the other each by itself."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from deltamend.checkpoint.checkpoint_folder import Checkpoint, ComputedTensor, StoredTensor
from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.errors import PairingError
from deltamend.inputs.computed_tensors import Concatenated, EntrySpan

_EXPERT = re.compile(
    r"(?P<prefix>.+\.experts)\.(?P<number>\d{1,9})\.(?P<part>w[123]|fc[123]|gate_proj|up_proj|down_proj)\.weight$"
)
_FUSED = re.compile(r"(?P<prefix>.+\.experts)\.(?P<part>gate_up_proj|gate_proj|up_proj|down_proj)$")
_PARTS = {
    "w1": "gate_proj",
    "w3": "up_proj",
    "w2": "down_proj",
    "fc1": "gate_proj",
    "fc3": "up_proj",
    "fc2": "down_proj",
}
_STACKED = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "gate_proj": ("gate_proj",),
    "up_proj": ("up_proj",),
    "down_proj": ("down_proj",),
}
"""What each stack of experts is made of; experts without a gate, as Nemotron-H has, stack their up projections alone."""
# Mixtral's module has another name in its files than in transformers 5.
_MODULES = ("block_sparse_moe", "mlp")


def restack_experts(base: Checkpoint, finetuned: Checkpoint) -> None:
    """Show the experts of BASE as FINETUNED stores them: all of a layer in one tensor, or one tensor for each expert.

    Raises:
        PairingError: both have experts in a layer, but stacked in another order or orientation.
    """
    ours, theirs = _Experts(base.tensors), _Experts(finetuned.tensors)
    tensors = dict(base.tensors)
    computed: dict[StoredTensor, ComputedTensor] = {}
    count = 0
    for wanted in theirs.fused():
        if wanted.name not in tensors and (found := ours.stacked(wanted)) is not None:
            shown = StoredTensor(wanted.name, found[0].dtype, wanted.shape, found[0].file, 0, 0)
            tensors[wanted.name] = shown = replace(
                shown, stop=wanted.elements * NUMPY_DTYPES[shown.dtype].itemsize, packing=found[0].packing
            )
            computed[shown] = Concatenated(base, found)
            count += 1
    for prefix, parts in theirs.single.items():
        for (part, number), wanted in parts.items():
            if wanted.name not in tensors and (slice_ := ours.slice_of(prefix, part, number, wanted)) is not None:
                if base.is_computed(slice_.of):
                    computed[slice_.shown] = EntrySpan(base, slice_.of, slice_.first)
                tensors[wanted.name] = slice_.shown
                count += 1
    for layer, wanted in theirs.unmatched(tensors):
        if ours.has(layer):
            raise PairingError(
                f"tensor {wanted.name!r} of FINETUNED, shape {list(wanted.shape)}: BASE stacks its experts in another order or "
                "orientation; save both with the same version of transformers"
            )
    if count:
        _show_restacked(base, finetuned, tensors, computed, count)


def _show_restacked(
    base: Checkpoint,
    finetuned: Checkpoint,
    tensors: dict[str, StoredTensor],
    computed: dict[StoredTensor, ComputedTensor],
    count: int,
) -> None:
    """Show the experts as they were matched, and the router of each layer under FINETUNED's name for its module."""
    for name, wanted in finetuned.tensors.items():
        router = tensors.get(_other_module(name))
        if name not in tensors and router is not None and router.shape == wanted.shape:
            tensors[name] = replace(router, name=name, origin=router.own_name)
            if base.is_computed(router):
                computed[tensors[name]] = EntrySpan(base, router)
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name in finetuned.tensors or not (_is_expert(name) or _other_module(name) in finetuned.tensors)
    }
    note = f"one model stores all experts of a layer in one tensor and the other stores each by itself: {count} tensors are matched"
    base.present(kept, computed, [note])


class _Cut(NamedTuple):
    """A tensor that is shown, and the tensor of which it is the entries from `first` on."""

    shown: StoredTensor
    of: StoredTensor
    first: int


class _Experts:
    """The expert weights of one model, by the name of their layer."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._fused: dict[tuple[str, str], StoredTensor] = {}
        self.single: dict[str, dict[tuple[str, int], StoredTensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            if (found := _EXPERT.fullmatch(name)) and len(tensor.shape) == 2:
                part = _PARTS.get(found["part"], found["part"])
                self.single[_layer(found["prefix"])][part, int(found["number"])] = tensor
            elif (found := _FUSED.fullmatch(name)) and len(tensor.shape) == 3:
                self._fused[_layer(found["prefix"]), found["part"]] = tensor

    def fused(self) -> Iterator[StoredTensor]:
        """The tensors that hold all experts of a layer."""
        yield from self._fused.values()

    def has(self, layer: str) -> bool:
        """Whether a layer has experts, stacked or single."""
        return layer in self.single or any(name == layer for name, _ in self._fused)

    def unmatched(self, known: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
        """Layer and tensor of all expert weights whose names are not in `known`."""
        for (layer, _), tensor in self._fused.items():
            if tensor.name not in known:
                yield layer, tensor
        for layer, parts in self.single.items():
            yield from ((layer, tensor) for tensor in parts.values() if tensor.name not in known)

    def stacked(self, wanted: StoredTensor) -> tuple[StoredTensor, ...] | None:
        """The tensors of single experts that, one after another, make up `wanted`; None where some are missing or do not fit."""
        found = _FUSED.fullmatch(wanted.name)
        if found is None:
            return None
        parts = self.single.get(_layer(found["prefix"]), {})
        names = _STACKED[found["part"]]
        chosen = [parts.get((part, number)) for number in range(wanted.shape[0]) for part in names]
        tensors = [tensor for tensor in chosen if tensor is not None]
        shape = (wanted.shape[1] // len(names), wanted.shape[2])
        fits = len(tensors) == len(chosen) and all(tensor.shape == shape for tensor in tensors)
        one_dtype = len({tensor.dtype for tensor in tensors}) == 1
        more = (names[0], wanted.shape[0]) in parts
        return tuple(tensors) if fits and one_dtype and not more and wanted.shape[1] % len(names) == 0 else None

    def slice_of(self, prefix: str, part: str, number: int, wanted: StoredTensor) -> _Cut | None:
        """One expert inside the tensor that holds all of them; None where there is no such tensor or the shapes do not fit."""
        for fused_part, names in _STACKED.items():
            fused = self._fused.get((prefix, fused_part))
            if part not in names or fused is None:
                continue
            rows = fused.shape[1] // len(names)
            if number >= fused.shape[0] or (rows, fused.shape[2]) != wanted.shape or fused.shape[1] % len(names):
                return None
            entries, itemsize = rows * fused.shape[2], NUMPY_DTYPES[fused.dtype].itemsize
            first = (number * len(names) + names.index(part)) * entries
            start = fused.start + first * itemsize
            shown = replace(fused, name=wanted.name, shape=wanted.shape, start=start, stop=start + entries * itemsize)
            return _Cut(shown, fused, first)
        return None


def _is_expert(name: str) -> bool:
    return _EXPERT.fullmatch(name) is not None or _FUSED.fullmatch(name) is not None


def _layer(prefix: str) -> str:
    """The name of a layer's experts, the same for both names of Mixtral's module."""
    return prefix.replace(*_MODULES)


def _other_module(name: str) -> str:
    """The name that a tensor of such a module, above all its router, has in the other naming."""
    old, new = _MODULES if _MODULES[0] in name else _MODULES[::-1]
    return name.replace(f".{old}.", f".{new}.")
