"""Show BASE in the layout of FINETUNED: the same names, the same stacking of experts, tied tensors where they are asked for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from deltamend.checkpoint.architecture import TOKEN_EMBEDDINGS, has_head
from deltamend.checkpoint.dtypes import NUMPY_DTYPES
from deltamend.checkpoint.open import Array, Checkpoint, ComputedTensor, StoredTensor
from deltamend.errors import PairingError, UsageError

INPUT_EMBEDDING = re.compile(rf"(^|\.)({'|'.join(sorted(TOKEN_EMBEDDINGS))})\.weight$")
OUTPUT_EMBEDDING = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")

# What models are wrapped in: multimodal ones around their text part, and the head around the body.
_PREFIXES = (
    "", "model.", "language_model.", "language_model.model.", "model.language_model.", "text_model.", "transformer.", "module.",
)  # fmt: skip

_EXPERT = re.compile(r"(?P<prefix>.+\.experts)\.(?P<number>\d+)\.(?P<part>w[123]|gate_proj|up_proj|down_proj)\.weight$")
_FUSED = re.compile(r"(?P<prefix>.+\.experts)\.(?P<part>gate_up_proj|down_proj)$")
_PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def align_base(base: Checkpoint, finetuned: Checkpoint, *, rename: str | None = None) -> None:
    """Let BASE show its tensors under the names and in the shapes FINETUNED has, where that needs no guess.

    Args:
        base: what is shown otherwise; its notes say how.
        finetuned: stays as it is, but for a head that is stored beside the embedding it is tied to: it is written once.
        rename: `OLD=NEW`, prefixes of names in BASE and in FINETUNED; none finds a pair of known prefixes where no matrix
            has the same name on both sides.

    Raises:
        PairingError: two ways to match the names are equally good, or experts are stacked in ways that cannot be matched.
        UsageError: `rename` is not written like OLD=NEW, or fits no name.
    """
    _rename(base, finetuned, rename)
    _restack_experts(base, finetuned)
    for checkpoint in (base, finetuned):
        _write_tied_once(checkpoint)
    _tie(base, finetuned)


def _rename(base: Checkpoint, finetuned: Checkpoint, given: str | None) -> None:
    ours, theirs = _matrices(base.tensors), _matrices(finetuned.tensors)
    alike = _matched(ours, theirs, ("", ""))
    if given is not None:
        old, separator, new = given.partition("=")
        if not separator:
            raise UsageError(f"--rename: {given!r} is not OLD=NEW; write it like --rename model.=language_model.model.")
        best = (old, new)
        if not _matched(ours, theirs, best):
            raise UsageError(f"--rename: {given!r} gives no matrix of BASE a name and shape that FINETUNED has")
    else:
        scores = {
            (old, new): _matched(ours, theirs, (old, new)) for old in _PREFIXES for new in _PREFIXES if old != new
        }
        top = max(scores.values())
        if top <= alike:
            return
        winners = [rule for rule, score in scores.items() if score == top]
        # A longer pair of prefixes with the same ending says the same; the shortest is the rule.
        best = min(winners, key=lambda rule: (len(rule[0]) + len(rule[1]), rule))
        renamed = [{name: _renamed(name, rule) for name in ours if _renamed(name, rule) in theirs} for rule in winners]
        if any(mapping != renamed[winners.index(best)] for mapping in renamed):
            written = ", ".join(f"{old}={new}" for old, new in sorted(winners))
            raise PairingError(f"names match in several ways ({written}); say which with --rename OLD=NEW")
    tensors: dict[str, StoredTensor] = {}
    computed: dict[StoredTensor, ComputedTensor] = {}
    for tensor in base.tensors.values():
        shown = replace(tensor, name=_renamed(tensor.name, best), origin=tensor.own_name)
        if shown.name in tensors:
            raise PairingError(f"two tensors of BASE would be called {shown.name!r}; give another --rename OLD=NEW")
        tensors[shown.name] = shown
        if shown != tensor and base.is_computed(tensor):
            computed[shown] = _Slice(base, tensor)
    count = _matched(ours, theirs, best)
    base.present(
        tensors,
        computed,
        [f"BASE's {best[0]!r} is FINETUNED's {best[1]!r}: {count} of {len(theirs)} matrices have a partner so"],
    )


def _matrices(tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items() if len(tensor.shape) >= 2}


def _matched(ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], rule: tuple[str, str]) -> int:
    """How many matrices get a partner of the same name and width."""
    return sum(
        shape[1:] == theirs.get(_renamed(name, rule), ())[1:] and _renamed(name, rule) in theirs
        for name, shape in ours.items()
    )


def _renamed(name: str, rule: tuple[str, str]) -> str:
    old, new = rule
    return new + name.removeprefix(old) if name.startswith(old) else name


@dataclass(frozen=True, eq=False)
class _Slice:
    """A computed tensor under another name, or consecutive entries of one."""

    checkpoint: Checkpoint
    tensor: StoredTensor
    first: int = 0

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        out[:] = self.checkpoint.values(self.tensor, self.first + start, self.first + stop)


@dataclass(frozen=True, eq=False)
class _Stacked:
    """Tensors one after another, as one."""

    checkpoint: Checkpoint
    parts: tuple[StoredTensor, ...]

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """See `ComputedTensor.read_into`."""
        position = 0
        for part in self.parts:
            first, last = max(start, position), min(stop, position + part.elements)
            if first < last:
                out[first - start : last - start] = self.checkpoint.values(part, first - position, last - position)
            position += part.elements


def _restack_experts(base: Checkpoint, finetuned: Checkpoint) -> None:
    """One tensor for all experts on one side, one for each expert on the other."""
    ours, theirs = _Experts(base.tensors), _Experts(finetuned.tensors)
    tensors = dict(base.tensors)
    computed: dict[StoredTensor, ComputedTensor] = {}
    count = 0
    for wanted in theirs.fused():
        if wanted.name not in tensors and (found := ours.stacked(wanted)) is not None:
            shown = StoredTensor(wanted.name, found[0].dtype, wanted.shape, found[0].file, 0, 0)
            tensors[wanted.name] = shown = replace(shown, stop=wanted.elements * NUMPY_DTYPES[shown.dtype].itemsize)
            computed[shown] = _Stacked(base, found)
            count += 1
    for prefix, parts in theirs.single.items():
        for (part, number), wanted in parts.items():
            if wanted.name not in tensors and (slice_ := ours.slice_of(prefix, part, number, wanted)) is not None:
                if base.is_computed(slice_.of):
                    computed[slice_.shown] = _Slice(base, slice_.of, slice_.first)
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
    """Show the experts as they were matched, with the rest of their module under FINETUNED's name for it."""
    for name, wanted in finetuned.tensors.items():
        router = tensors.get(_other_module(name))
        if name not in tensors and router is not None and router.shape == wanted.shape:
            tensors[name] = replace(router, name=name, origin=router.own_name)
            if base.is_computed(router):
                computed[tensors[name]] = _Slice(base, router)
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name in finetuned.tensors or not (_is_expert(name) or _other_module(name) in finetuned.tensors)
    }
    note = f"experts are stacked in one model and single in the other: {count} tensors are matched"
    base.present(kept, computed, [note])


class _Cut(NamedTuple):
    """A tensor shown, and the one whose entries it is from `first` on."""

    shown: StoredTensor
    of: StoredTensor
    first: int


class _Experts:
    """The expert weights of one model, by what their layer is called."""

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
        """Tensors that hold all experts of a layer."""
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
        """The tensors that make up `wanted` one after another; None where they are not there or do not fit."""
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
        """One expert inside the tensor of all; None where there is none or it does not fit."""
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


# Mixtral's module has another name in its files than in transformers 5.
_MODULES = ("block_sparse_moe", "mlp")


def _layer(prefix: str) -> str:
    """A layer's experts by one name."""
    return prefix.replace(*_MODULES)


def _other_module(name: str) -> str:
    """What a tensor of such a module, its router above all, is called on the other side."""
    old, new = _MODULES if _MODULES[0] in name else _MODULES[::-1]
    return name.replace(f".{old}.", f".{new}.")


def _write_tied_once(checkpoint: Checkpoint) -> None:
    """Leave out a head that is the same bytes as the embedding it is tied to: loaders tie it again.

    Repaired one by one they might come out differently, and which of them a loader takes depends on its version. Where
    config.json leaves it open whether they are tied, it is made to say so.
    """
    said = _says_tied(checkpoint.config)
    embedding = next((tensor for name, tensor in checkpoint.tensors.items() if INPUT_EMBEDDING.search(name)), None)
    head = next((tensor for name, tensor in checkpoint.tensors.items() if OUTPUT_EMBEDDING.search(name)), None)
    if said is False or embedding is None or head is None or not _same_values(checkpoint, embedding, head):
        return
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name != head.name}
    note = f"{head.name!r} is the same as {embedding.name!r} and stored beside it; it is written once and tied"
    checkpoint.present(tensors, notes=[note])
    if said is None:
        checkpoint.alter_config({**checkpoint.config, "tie_word_embeddings": True})


def _same_values(checkpoint: Checkpoint, first: StoredTensor, second: StoredTensor, size: int = 1 << 20) -> bool:
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    spans = ((start, min(first.elements, start + size)) for start in range(0, first.elements, size))
    return all(
        checkpoint.values(first, *span).tobytes() == checkpoint.values(second, *span).tobytes() for span in spans
    )


def _tie(base: Checkpoint, finetuned: Checkpoint) -> None:
    """A head that FINETUNED stores and BASE ties to its embedding: the base of it is that embedding."""
    embedding = next((tensor for name, tensor in base.tensors.items() if INPUT_EMBEDDING.search(name)), None)
    if embedding is None or not _is_tied(base):
        return
    for name, head in finetuned.tensors.items():
        if OUTPUT_EMBEDDING.search(name) and name not in base.tensors and head.shape[1:] == embedding.shape[1:]:
            shown = replace(embedding, name=name, origin=embedding.own_name)
            computed = {shown: _Slice(base, embedding)} if base.is_computed(embedding) else {}
            note = f"{name!r} is compared with {embedding.name!r} of BASE, which is tied to it"
            base.present({**base.tensors, name: shown}, computed, [note])
            return


def _is_tied(checkpoint: Checkpoint) -> bool:
    """Whether its head is its embedding: config.json says so, or leaves it open and no head is stored."""
    said = _says_tied(checkpoint.config)
    if said is None:
        return has_head(checkpoint.config) and not any(map(OUTPUT_EMBEDDING.search, checkpoint.tensors))
    return said


def _says_tied(config: Mapping[str, object]) -> bool | None:
    """`tie_word_embeddings` of config.json or of its text part; None where it says nothing."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        said = part.get("tie_word_embeddings")
        if isinstance(said, bool):
            return said
    return None
