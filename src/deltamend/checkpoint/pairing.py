"""Pair the tensors of BASE and FINETUNED by name and decide for each what is to be done, before anything is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deltamend.checkpoint.dtypes import FLOAT_NAMES
from deltamend.checkpoint.open import StoredTensor
from deltamend.errors import PairingError, UsageError


@dataclass(frozen=True)
class TensorPair:
    """One tensor of the output.

    `filter`: it is a matrix both sides hold; the first `rows` rows are repaired, further rows are kept as fine-tuned.
    `keep`: its bytes are those of FINETUNED; `reason` says why.
    """

    finetuned: StoredTensor
    base: StoredTensor | None
    action: Literal["filter", "keep"]
    reason: str
    rows: int

    @property
    def name(self) -> str:
        """Name of the tensor, the same on both sides."""
        return self.finetuned.name


@dataclass(frozen=True)
class Pairing:
    """All tensors of the output, in the order of FINETUNED's files, and the names that only BASE has."""

    pairs: tuple[TensorPair, ...]
    only_in_base: tuple[str, ...]


def pair_tensors(
    base: Mapping[str, StoredTensor],
    finetuned: Mapping[str, StoredTensor],
    configs: tuple[Mapping[str, Any], Mapping[str, Any]],
    *,
    include: str | None = None,
    exclude: str | None = None,
) -> Pairing:
    """Pair the tensors of two models by name.

    Args:
        base: the tensors fine-tuning started from.
        finetuned: those of its descendant; every one of them is in the output.
        configs: the config.json of the two, or empty mappings where there is none.
        include: a regular expression; matrices whose name it does not find are kept as fine-tuned.
        exclude: a regular expression; matrices whose name it finds are kept as fine-tuned.

    Raises:
        PairingError: other architecture, shapes that differ by more than a resized vocabulary, or no matrix in common.
        UsageError: `include` or `exclude` is not a regular expression.
    """
    for key in ("model_type", "architectures"):
        ours, theirs = (config.get(key) for config in configs)
        if ours is not None and theirs is not None and ours != theirs:
            raise PairingError(
                f"config.json: {key} is {ours!r} in BASE and {theirs!r} in FINETUNED; give the base model this one was fine-tuned from"
            )
    vocabularies = (_vocabulary(configs[0]), _vocabulary(configs[1]))
    selection = _Selection(_pattern(include, "include"), _pattern(exclude, "exclude"))
    pairs = tuple(_pair(tensor, base.get(name), vocabularies, selection) for name, tensor in finetuned.items())
    if not any(pair.base is not None and len(pair.finetuned.shape) == 2 for pair in pairs):
        raise PairingError(
            f"no matrix has the same name in BASE (which holds {next(iter(base), 'nothing')!r}) and FINETUNED "
            f"(which holds {next(iter(finetuned), 'nothing')!r}); give a base of the same layout"
        )
    return Pairing(pairs, tuple(sorted(base.keys() - finetuned.keys())))


@dataclass(frozen=True)
class _Selection:
    include: re.Pattern[str] | None
    exclude: re.Pattern[str] | None

    def refusal(self, name: str) -> str:
        """Why `name` is not selected, or nothing."""
        if self.include is not None and not self.include.search(name):
            return "not matched by --include"
        if self.exclude is not None and self.exclude.search(name):
            return "matched by --exclude"
        return ""


def _pattern(text: str | None, option: str) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise UsageError(f"--{option}: {text!r} is not a regular expression ({error}); mend it") from error


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    """`vocab_size` of the config, or of the text part of a multimodal one."""
    text = config.get("text_config")
    size = config.get("vocab_size")
    if size is None and isinstance(text, dict):
        size = text.get("vocab_size")
    return size if isinstance(size, int) else None


def _pair(
    finetuned: StoredTensor,
    base: StoredTensor | None,
    vocabularies: tuple[int | None, int | None],
    selection: _Selection,
) -> TensorPair:
    rows = finetuned.shape[0] if finetuned.shape else 1

    def keep(reason: str) -> TensorPair:
        return TensorPair(finetuned, base, "keep", reason, rows)

    if base is None:
        return keep("only in FINETUNED")
    if finetuned.shape != base.shape:
        rows = _shared_rows(finetuned, base, vocabularies)
    if len(finetuned.shape) != 2:
        return keep("not a matrix")
    if finetuned.elements == 0 or rows == 0:
        return keep("empty")
    if finetuned.dtype not in FLOAT_NAMES or base.dtype not in FLOAT_NAMES:
        return keep("not floating point")
    if refusal := selection.refusal(finetuned.name):
        return keep(refusal)
    reason = (
        ""
        if finetuned.shape == base.shape
        else f"vocabulary resized from {base.shape[0]} to {finetuned.shape[0]} rows; the first {rows} are repaired"
    )
    return TensorPair(finetuned, base, "filter", reason, rows)


def _shared_rows(finetuned: StoredTensor, base: StoredTensor, vocabularies: tuple[int | None, int | None]) -> int:
    """Rows both sides hold when the vocabulary was resized; any other difference is refused."""
    same_rows = finetuned.shape[1:] == base.shape[1:] and bool(base.shape) and bool(finetuned.shape)
    if same_rows and (base.shape[0], finetuned.shape[0]) == vocabularies:
        return min(base.shape[0], finetuned.shape[0])
    raise PairingError(
        f"tensor {finetuned.name!r}: shape {list(base.shape)} in BASE, {list(finetuned.shape)} in FINETUNED, "
        f"which is not a resized vocabulary (vocab_size {vocabularies[0]} and {vocabularies[1]}); give the base model this one was fine-tuned from"
    )
